"""Short hashes by which weights are told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

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
    return _short(b"".join(entry for _, entry in sorted(entries, key=lambda entry: entry[0])))


def joined(digests: Mapping[str, str]) -> str:
    """One fingerprint of several, by the names of what they are of."""
    return _short("".join(f"{name}{value}" for name, value in sorted(digests.items())).encode())


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
