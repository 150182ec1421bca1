"""Means over latent tokens of images that may be padded."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_per_image(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over the tokens and channels of each image, in float32. values: (B, n, C), valid: (B, n) bool -> (B,)."""
    values = values.float()
    if valid is None:
        return values.mean((1, 2))
    weight = valid[..., None].to(values.dtype)
    return (values * weight).sum((1, 2)) / (weight.sum((1, 2)) * values.shape[2]).clamp(min=1)


def mean_squared_error(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over images of the mean squared error of each, in float32, every image counting the same.

    prediction, target: (B, n, C), valid: (B, n) bool or None -> scalar. The loss of CFG distillation (velocities
    against the guided ones of the teacher) and of the fake branch.
    """
    return mean_per_image((prediction.float() - target.float()).square(), valid).mean()


def cauchy_error(prediction: Tensor, target: Tensor, scale: float, valid: Tensor | None = None) -> Tensor:
    """Mean over images of the Cauchy (Lorentzian) loss of their tokens, scale² log(1 + e / scale²), in float32.

    e is a token's mean squared error over channels. Below `scale` it counts as in `mean_squared_error`, far above it
    hardly pulls: a network that must choose between several possible tokens learns one of them, where a squared error
    asks for their mean.

    prediction, target: (B, n, C), valid: (B, n) bool or None -> scalar.
    """
    error = (prediction.float() - target.float()).square().mean(-1, keepdim=True)
    return mean_per_image(scale**2 * torch.log1p(error / scale**2), valid).mean()


def regression_error(
    prediction: Tensor, target: Tensor, scale: float | None = None, valid: Tensor | None = None
) -> Tensor:
    """`cauchy_error` of a scale, or with None `mean_squared_error`."""
    if scale is None:
        return mean_squared_error(prediction, target, valid)
    return cauchy_error(prediction, target, scale, valid)
