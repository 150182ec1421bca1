"""Random draws that depend on seed, rank and step alone: ranks differ, and a resumed run repeats nothing."""

from __future__ import annotations

import hashlib

import torch


def step_generator(seed: int, rank: int, step: int, purpose: str = "") -> torch.Generator:
    """A CPU generator for one update; `purpose` separates the draws of different parts of a step."""
    digest = hashlib.sha256(f"{seed}/{rank}/{step}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
