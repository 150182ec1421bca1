"""Means over latent tokens of images that may be padded."""

from __future__ import annotations

from torch import Tensor


def mean_per_image(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over the tokens and channels of each image, in float32. values: (B, n, C), valid: (B, n) bool -> (B,)."""
    values = values.float()
    if valid is None:
        return values.mean((1, 2))
    weight = valid[..., None].to(values.dtype)
    return (values * weight).sum((1, 2)) / (weight.sum((1, 2)) * values.shape[2]).clamp(min=1)
