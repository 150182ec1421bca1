"""Short hashes by which weights are told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Of names, shapes and a few values of every tensor, in whatever order and floating type they come.

    Tensors on "meta" count with name and shape.
    """
    entries = []
    for name, value in tensors:
        values = b""
        if not value.is_meta:
            sample = value.detach().flatten()[:8].to("cpu", torch.bfloat16)
            values = sample.view(torch.uint8).numpy().tobytes()
        entries.append((name, f"{name}{tuple(value.shape)}".encode() + values))
    return joined(entry for _, entry in sorted(entries, key=lambda entry: entry[0]))


def joined(pieces: Iterable[bytes]) -> str:
    """One hash of several pieces, 16 hexadecimal digits."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()[:16]
