"""Draft heads as files: one safetensors file that says which target it belongs to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from hyperbagel.bagel.branch_checkpoint import base_hash
from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.finite import require_finite
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.shipped import resolve
from hyperbagel.bagel.tensors import metadata_of, read_tensors, write_tensors
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead

DRAFT = "hyperbagel_draft"
"""Key of safetensors metadata of a draft head's file."""


def save_draft(head: DraftHead, model: Bagel, path: str | Path) -> None:
    """Write a draft head of `model`; its settings and the model's fingerprint become metadata."""
    name = "" if model.source is None else Path(model.source).name
    content = {"config": dataclasses.asdict(head.config), "base": base_hash(model), "model": name}
    write_tensors(head.state_dict(), Path(path), {DRAFT: json.dumps(content)})


def read_settings(path: Path) -> dict[str, Any]:
    """What a draft head's file says about itself: `config`, `base`, the fingerprint of its target, and of
    newer files `model`, the name of the target's folder.

    Raises CheckpointError for a file that is missing, broken or no draft head.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give a draft head's safetensors file")
    metadata = metadata_of(path)
    if DRAFT not in metadata:
        raise CheckpointError(f"{path}: not a draft head (no {DRAFT!r} metadata); pass a file of a draft training")
    content: dict[str, Any] = json.loads(metadata[DRAFT])
    return content


def require_target(path: Path, settings: dict[str, Any], base: str, place: str) -> None:
    """Raises CheckpointError for a draft head with these settings that was made for another target than the one with
    the fingerprint `base`. place: the target's folder, for the message."""
    if settings["base"] != base:
        theirs = ", ".join(filter(None, [settings.get("model"), f"fingerprint {settings['base']}"]))
        raise CheckpointError(
            f"{path}: made for another target ({theirs}; {place} has {base}); load the model it was trained for"
        )


def load_draft(path: str | Path, model: Bagel) -> DraftHead:
    """A draft head for `model` from a file or a name (such as `scenes/draft`), on its device and in its dtype.

    Raises CheckpointError when the file is missing, broken, not a draft head, or made for another target, and
    NotFiniteError for numbers that are none.
    """
    path = resolve(path, ".safetensors")
    content = read_settings(path)
    require_target(path, content, base_hash(model), model.source or "this model")
    tensors = read_tensors(path, model.dtype, model.device)
    for key, value in tensors.items():  # few, and a target never shows what is wrong with its draft head
        require_finite(value, f"{path}: {key}")
    vocabulary = tensors["vocabulary"].tolist() if "vocabulary" in tensors else None
    head = DraftHead(DraftConfig(**content["config"]), model.config.llm, vocabulary)
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit its own settings: {error}; save it again") from error
    return head.to(model.device, model.dtype).eval()
