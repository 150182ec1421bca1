"""Grids of image tokens: their places in position tables, and what fits a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.transfer import moved


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
        of_size = {}
        for height, width in dict.fromkeys(sizes):
            if not (0 < height <= side and 0 < width <= side):
                raise ValueError(f"image of {height}x{width} latent tokens: the model's grid is {side}x{side}")
            of_size[height, width] = grid_ids((height, width), side)
        device, valid = torch.device(device), None
        if len(of_size) == 1:  # one row goes to the device for all
            return LatentGrid(tuple(sizes), moved(of_size[sizes[0]], device).repeat(len(sizes), 1), None)
        ids = torch.nn.utils.rnn.pad_sequence([of_size[size] for size in sizes], batch_first=True)
        if len({len(row) for row in of_size.values()}) > 1:
            lengths = torch.tensor([h * w for h, w in sizes])
            valid = moved(torch.arange(ids.shape[1]) < lengths[:, None], device)
        return LatentGrid(tuple(sizes), moved(ids, device), valid)

    @staticmethod
    def of_pictures(
        sizes: Sequence[tuple[int, int]], config: BagelConfig, device: torch.device | str = "cpu"
    ) -> LatentGrid:
        """Grids for pictures of `sizes` (height, width) in pixels. Raises ValueError for one that does not fit."""
        factor = config.autoencoder.downsample
        tokens = {}
        for height, width in dict.fromkeys(sizes):
            if height % factor or width % factor:
                raise ValueError(f"image of {width}x{height} pixels: sides must be multiples of {config.latent_stride}")
            tokens[height, width] = latent_grid((height // factor, width // factor), config)
        return LatentGrid.of([tokens[size] for size in sizes], config.max_latent_size, device)

    def repeat(self, times: int) -> LatentGrid:
        """The grids of `times` stacked guidance variants."""
        valid = None if self.valid is None else self.valid.repeat(times, 1)
        return LatentGrid(self.sizes * times, self.position_ids.repeat(times, 1), valid)
