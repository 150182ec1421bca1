"""Noise that all pictures share except in its lowest frequencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hyperbagel.bagel.groups import in_groups, padded, rows_of
from hyperbagel.bagel.transfer import moved


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

        def start(members: list[int]) -> Tensor:
            height, width = sizes[members[0]]
            generator = torch.Generator().manual_seed(self.seed)  # of the host, for the same numbers on all devices
            shared = torch.randn(height * width, noise.shape[2], generator=generator)
            own = rows_of(noise, members)[:, : height * width]
            return self._refined(own, moved(shared.to(noise.dtype), noise.device), (height, width))

        return padded(in_groups(sizes, start))

    def other(self, noise: Tensor, fresh: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Own noise with all that is not coarse from `fresh`, both (B, n, C): other noise of the same picture."""

        def mixed(members: list[int]) -> Tensor:
            height, width = sizes[members[0]]
            coarse, fine = (rows_of(x, members)[:, : height * width] for x in (noise, fresh))
            return self._refined(coarse, fine, (height, width))

        return padded(in_groups(sizes, mixed))

    def _refined(self, coarse: Tensor, fine: Tensor, size: tuple[int, int]) -> Tensor:
        """The lowest frequencies of noise (b, h * w, C) with the others of another, or of one (h * w, C) for all."""
        rows, columns = (moved(low_pass(side, self.frequencies).to(fine.dtype), fine.device) for side in size)
        difference = torch.einsum("ij,bjkc,kl->bilc", rows, (coarse - fine).unflatten(1, size), columns)
        return fine + difference.flatten(1, 2)


def low_pass(length: int, count: int) -> Tensor:
    """Projection (length, length) onto the lowest `count` cosines of a type-II DCT; the identity for all of them."""
    frequency, place = torch.arange(min(count, length))[:, None], torch.arange(length) + 0.5
    cosines = normalize(torch.cos(math.pi / length * frequency * place), dim=1)
    return cosines.T @ cosines
