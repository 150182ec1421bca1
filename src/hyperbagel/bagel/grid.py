"""Grids of image tokens: their places in position tables, and what fits a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbagel.bagel.config import BagelConfig


def grid_ids(size: tuple[int, int], side: int) -> Tensor:
    """Position ids of an (h, w) token grid in a table of `side` x `side`: row * side + column, raster order."""
    return (torch.arange(size[0])[:, None] * side + torch.arange(size[1])).flatten()


def latent_grid(size: tuple[int, ...], config: BagelConfig) -> tuple[int, int]:
    """Token grid (h, w) of a latent of `size` (height, width). Raises ValueError when it does not fit the model."""
    patch, side = config.latent_patch_size, config.max_latent_size
    if size[0] % patch or size[1] % patch or max(size) > side * patch or not min(size):
        stride, factor = config.latent_stride, config.autoencoder.downsample
        raise ValueError(
            f"image of {size[1] * factor}x{size[0] * factor} pixels: sides must be multiples of {stride} "
            f"and at most {side * stride} pixels for this model's latent grid"
        )
    return size[0] // patch, size[1] // patch


@dataclass(frozen=True)
class LatentGrid:
    """The token grids of a batch of images to be denoised.

    sizes: (h, w) in tokens, one per image; position_ids: (B, n) into the latent position table, n the longest;
    valid: (B, n) bool, or None when all images have n tokens.
    """

    sizes: tuple[tuple[int, int], ...]
    position_ids: Tensor
    valid: Tensor | None

    @staticmethod
    def of(sizes: Sequence[tuple[int, int]], side: int, device: torch.device | str = "cpu") -> LatentGrid:
        """Grids of the given sizes in a position table of `side` x `side`. Raises ValueError for a grid beyond it."""
        for height, width in sizes:
            if not (0 < height <= side and 0 < width <= side):
                raise ValueError(f"image of {height}x{width} latent tokens: the model's grid is {side}x{side}")
        ids = torch.nn.utils.rnn.pad_sequence([grid_ids(size, side) for size in sizes], batch_first=True)
        lengths = torch.tensor([h * w for h, w in sizes])
        valid = None
        if bool((lengths != ids.shape[1]).any()):
            valid = (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)
        return LatentGrid(tuple(sizes), ids.to(device), valid)

    @staticmethod
    def of_pictures(
        sizes: Sequence[tuple[int, int]], config: BagelConfig, device: torch.device | str = "cpu"
    ) -> LatentGrid:
        """Grids for pictures of `sizes` (height, width) in pixels. Raises ValueError for one that does not fit."""
        factor = config.autoencoder.downsample
        for height, width in sizes:
            if height % factor or width % factor:
                raise ValueError(f"image of {width}x{height} pixels: sides must be multiples of {config.latent_stride}")
        tokens = [latent_grid((height // factor, width // factor), config) for height, width in sizes]
        return LatentGrid.of(tokens, config.max_latent_size, device)

    def repeat(self, times: int) -> LatentGrid:
        """The grids of `times` stacked guidance variants."""
        valid = None if self.valid is None else self.valid.repeat(times, 1)
        return LatentGrid(self.sizes * times, self.position_ids.repeat(times, 1), valid)
