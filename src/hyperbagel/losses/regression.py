"""Regression of a velocity, or of an estimate of x_0, to its target: squared error, or the Cauchy loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hyperbagel.losses.base import LossTerm, Step, Update
from hyperbagel.losses.reduction import mean_per_image


def mean_squared_error(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over images of the mean squared error of each, in float32, every image counting the same.

    prediction, target: (B, n, C), valid: (B, n) bool or None -> scalar. The loss of CFG distillation (velocities
    against the guided ones of the teacher) and of the fake branch.

    Examples:
        >>> mean_squared_error(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 3.0))
        tensor(9.)
    """
    return mean_per_image((prediction.float() - target.float()).square(), valid).mean()


def cauchy_error(prediction: Tensor, target: Tensor, scale: float, valid: Tensor | None = None) -> Tensor:
    """Mean over images of the Cauchy (Lorentzian) loss of their tokens, scale² log(1 + e / scale²), in float32.

    e is a token's mean squared error over channels. Below `scale` it counts as in `mean_squared_error`, far above it
    hardly pulls: a network that must choose between several possible tokens learns one of them, where a squared error
    asks for their mean.

    prediction, target: (B, n, C), valid: (B, n) bool or None -> scalar.

    Examples:
        >>> near, far = torch.full((1, 1, 1), 0.01), torch.full((1, 1, 1), 10.0)
        >>> [round(float(cauchy_error(x, torch.zeros(1, 1, 1), scale=0.1)), 4) for x in (near, far)]
        [0.0001, 0.0921]
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


class Regression(LossTerm):
    """A step's velocity or estimate of x_0 against its target: CFG distillation, the fake branch, TSCD by distance,
    reward tuning, and ADP's pairs.

    Args:
        name: logged as `loss/<name>`.
        weight: factor in the sum of losses.
        update: the sum it belongs to.
        of: what is compared.
        scale: errors from which on a target counts little (the Cauchy loss); None: all count (the squared error).
        sources: names of the data sources whose batches it applies to; None: all.
    """

    def __init__(
        self,
        name: str = "regression",
        weight: float = 1.0,
        update: Update = "student",
        of: Literal["velocity", "x0"] = "velocity",
        scale: float | None = None,
        sources: Sequence[str] | None = None,
    ) -> None:
        super().__init__(name, weight, update, sources)
        self.of, self.scale = of, scale

    def forward(self, step: Step) -> Tensor:
        """Mean over images of the loss of their tokens."""
        found, target = (
            (step.velocity, step.target_velocity) if self.of == "velocity" else (step.x0_hat, step.target_x0)
        )
        return regression_error(found, self.needed(target, f"target_{self.of}"), self.scale, step.compared)
