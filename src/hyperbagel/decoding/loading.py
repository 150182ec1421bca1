"""What makes answers faster, from a file: a draft head, or phrases."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.shipped import resolve
from hyperbagel.decoding.lookup import LookupSettings
from hyperbagel.decoding.settings import SpeculationSettings
from hyperbagel.draft.checkpoint import load_draft, read_settings
from hyperbagel.draft.head import DraftHead
from hyperbagel.draft.phrases import holds_phrases


class Proposing(NamedTuple):
    """Who proposes tokens, and how: the second and third argument of a `Speculator`."""

    head: DraftHead | None = None
    speculation: SpeculationSettings | None = None


def load_proposing(path: str | Path | None, model: Bagel) -> Proposing:
    """A draft head from a file or a name (such as `scenes/draft`), or phrases, which are looked up without a head; None
    proposes nothing. Raises as `load_draft` does.
    """
    if path is None:
        return Proposing()
    file = resolve(path, ".safetensors")
    if not holds_phrases(file):
        return Proposing(load_draft(file, model))
    return Proposing(None, SpeculationSettings(lookup=LookupSettings(match=1, phrases=str(file), share=0.02)))


def check_proposing(path: str | Path) -> None:
    """Raises CheckpointError for a file that is neither a draft head nor phrases: what can be told without a model."""
    file = resolve(path, ".safetensors")
    if not holds_phrases(file):
        read_settings(file)
