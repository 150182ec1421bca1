"""Distribution matching distillation (arXiv 2311.18828, 2405.14867), as DMDO uses it.

The fake branch needs no formula of its own: `reduction.mean_squared_error` against `flow.schedule.velocity_target` of
the ends of the student's own trajectory, x_T - x_0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperbagel.losses.reduction import mean_per_image, mean_squared_error

EPSILON = 1e-6


def dmd_gradient(x0_hat: Tensor, real: Tensor, fake: Tensor, valid: Tensor | None = None) -> Tensor:
    """The direction (fake - real) / mean |x0_hat - real|, normalised for each image, in float32 and without gradient.

    x0_hat: the generator's estimate; real, fake: estimates of x_0 by the guided teacher and the fake branch from the
    same re-noised x0_hat; all (B, n, C); valid: (B, n) bool or None -> (B, n, C), zero at padding.
    """
    x0_hat, real, fake = (x.detach().float() for x in (x0_hat, real, fake))
    scale = mean_per_image((x0_hat - real).abs(), valid).clamp(min=EPSILON)
    gradient = (fake - real) / scale[:, None, None]
    return gradient if valid is None else gradient * valid[..., None]


def dmd_loss(x0_hat: Tensor, gradient: Tensor, valid: Tensor | None = None) -> Tensor:
    """1/2 MSE(x0_hat, stopgrad(x0_hat - gradient)): its gradient with respect to x0_hat is `gradient` / elements."""
    target = (x0_hat.detach().float() - gradient).detach()
    return 0.5 * mean_squared_error(x0_hat, target, valid)


def interval_above(t: Tensor, grid: Tensor) -> Tensor:
    """Index i with grid[i] >= t > grid[i + 1], of a sampling grid (N + 1,) that falls from 1 to 0. t: (B,) in [0, 1].

    `grid[i]` is the upper end of the step that holds t; t = 0 belongs to the last step.
    """
    return (torch.searchsorted(grid.flip(0).contiguous(), t.contiguous()) - 1).clamp(min=0).neg() + len(grid) - 2
