"""Resizes generated pictures for vision encoders, with gradients back to the pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.bagel.groups import in_groups
from hyperbagel.bagel.images import ImageTransform


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialias. pixels: (..., 3, H, W), size: (height, width) -> (..., 3, height, width)."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    output = F.interpolate(flat, size, mode="bicubic", antialias=True, align_corners=False)
    return output.reshape(*pixels.shape[:-2], *size)


def encoder_views(pictures: Sequence[Tensor], transform: ImageTransform) -> list[Tensor]:
    """Pictures (3, H, W) of any sizes, clamped to [-1, 1] and resized as `transform` says: each (3, h, w).

    What reading the saved pictures would give, but for the rounding to 8 bits; differentiable.
    """

    def views(members: list[int]) -> Tensor:
        pixels = torch.stack([pictures[i] for i in members])
        width, height = transform.size(pixels.shape[-1], pixels.shape[-2])
        return resized(pixels.clamp(-1, 1), (height, width))

    return in_groups([tuple(picture.shape) for picture in pictures], views)
