"""Contexts of documents that are to be answered: with their text, and with what a draft head knows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hyperbagel.bagel.context import Context
from hyperbagel.decoding.rows import DraftMemory


@dataclass(frozen=True)
class TextContext(Context):
    """A context with its text, in which may be looked up how answers go on. Usable wherever a context is.

    text: token ids of each document, negative where a picture's tokens stand.
    """

    text: Sequence[Sequence[int]] = field(kw_only=True)


@dataclass(frozen=True)
class DraftedContext(TextContext):
    """A context that the draft head can read as well.

    draft: what the head knows of it; endings: the last tokens of what each document asks.
    """

    draft: DraftMemory = field(kw_only=True)
    endings: Sequence[Sequence[int]] = field(kw_only=True)
