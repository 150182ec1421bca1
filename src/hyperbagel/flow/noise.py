"""Noise that all pictures share except in its lowest frequencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class SharedNoise:
    """One noise for all pictures, but for the lowest `frequencies` x `frequencies` cosine frequencies, each one's own.

    What a sampler makes of it still varies in colour and arrangement, which follow from coarse noise, while a network
    needs to look at few numbers only. Standard normal noise stays standard normal.

    Examples:
        >>> shared = SharedNoise(frequencies=0, seed=1)
        >>> x_t = shared(torch.randn(2, 4, 3), sizes=[(2, 2), (2, 2)])
        >>> bool((x_t[0] == x_t[1]).all())  # with no frequency of their own, both pictures start alike
        True
    """

    frequencies: int = 2
    """Cosine frequencies per side that are each picture's own; 0: all is shared, and a picture follows from its context
    alone."""
    seed: int = 0
    """Seed of what is shared; pictures of one size share the same."""

    def __post_init__(self) -> None:
        if self.frequencies < 0:
            raise ValueError(f"need frequencies >= 0, got {self}")

    def __call__(self, noise: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Own noise (B, n, C) of pictures of (h, w) tokens, zero at padding -> what a sampler should start with."""
        rows = []
        for own, (height, width) in zip(noise, sizes, strict=True):
            generator = torch.Generator().manual_seed(self.seed)
            shared = torch.randn(height * width, noise.shape[2], generator=generator).to(noise)
            rows.append(self._refined(own[: height * width], shared, height, width))
        return pad_sequence(rows, batch_first=True)

    def other(self, noise: Tensor, fresh: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Own noise with all that is not coarse from `fresh`, both (B, n, C): other noise of the same picture."""
        rows = [
            self._refined(own[: height * width], details[: height * width], height, width)
            for own, details, (height, width) in zip(noise, fresh, sizes, strict=True)
        ]
        return pad_sequence(rows, batch_first=True)

    def _refined(self, coarse: Tensor, fine: Tensor, height: int, width: int) -> Tensor:
        """The lowest frequencies of one noise (h * w, C) with the others of another."""
        difference = torch.einsum(
            "ij,jkc,kl->ilc",
            low_pass(height, self.frequencies).to(fine),
            (coarse - fine).unflatten(0, (height, width)),
            low_pass(width, self.frequencies).to(fine),
        )
        return fine + difference.flatten(0, 1)


def low_pass(length: int, count: int) -> Tensor:
    """Projection (length, length) onto the lowest `count` cosines of a type-II DCT; the identity for all of them."""
    frequency, place = torch.arange(min(count, length))[:, None], torch.arange(length) + 0.5
    cosines = normalize(torch.cos(math.pi / length * frequency * place), dim=1)
    return cosines.T @ cosines
