"""Random draws that depend on seed, rank and step alone: ranks differ, and a resumed run repeats nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def step_generator(
    seed: int, rank: int, step: int, purpose: str = "", device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator for one update; `purpose` separates the draws of different parts of a step.

    On a GPU it is the GPU's own, which nothing has to be brought to; its numbers are others than those of a CPU.
    """
    digest = hashlib.sha256(f"{seed}/{rank}/{step}/{purpose}".encode()).digest()
    own = torch.device(device) if torch.device(device).type == "cuda" else torch.device("cpu")
    return torch.Generator(own).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard normal draws, on the generator's device."""
    return torch.randn(*shape, generator=generator, device=generator.device)


def uniform(count: int, limits: tuple[float, float], generator: torch.Generator) -> Tensor:
    """(count,) uniform draws between two limits, on the generator's device."""
    low, high = limits
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


def integers(low: int, high: int, count: int, generator: torch.Generator) -> Tensor:
    """(count,) int64 from low to high, without high, on the generator's device."""
    return torch.randint(low, high, (count,), generator=generator, device=generator.device)
