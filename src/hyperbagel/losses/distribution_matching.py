"""Distribution matching distillation (arXiv 2311.18828, 2405.14867), as DMDO uses it.

The fake branch needs no formula of its own: `regression.mean_squared_error` against `flow.schedule.velocity_target` of
the ends of the student's own trajectory, x_T - x_0.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hyperbagel.losses.base import LossTerm, Step
from hyperbagel.losses.reduction import mean_per_image
from hyperbagel.losses.regression import mean_squared_error

EPSILON = 1e-6


def dmd_gradient(x0_hat: Tensor, real: Tensor, fake: Tensor, valid: Tensor | None = None) -> Tensor:
    """The direction (fake - real) / mean |x0_hat - real|, normalised for each image, in float32 and without gradient.

    x0_hat: the generator's estimate; real, fake: estimates of x_0 by the guided teacher and the fake branch from the
    same re-noised x0_hat; all (B, n, C); valid: (B, n) bool or None -> (B, n, C), zero at padding.

    Examples:
        >>> x0_hat = torch.zeros(1, 1, 1)
        >>> dmd_gradient(x0_hat, torch.ones(1, 1, 1), torch.full((1, 1, 1), 3.0)).item()
        2.0
    """
    x0_hat, real, fake = (x.detach().float() for x in (x0_hat, real, fake))
    scale = mean_per_image((x0_hat - real).abs(), valid).clamp(min=EPSILON)
    gradient = (fake - real) / scale[:, None, None]
    return gradient if valid is None else gradient * valid[..., None]


def dmd_loss(x0_hat: Tensor, gradient: Tensor, valid: Tensor | None = None) -> Tensor:
    """1/2 MSE(x0_hat, stopgrad(x0_hat - gradient)): its gradient with respect to x0_hat is `gradient` / elements.

    Examples:
        >>> dmd_loss(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 2.0)).item()
        2.0
    """
    target = (x0_hat.detach().float() - gradient).detach()
    return 0.5 * mean_squared_error(x0_hat, target, valid)


class DistributionMatching(LossTerm):
    """DMD's gradient on the student's estimate of x_0."""

    def __init__(self, name: str = "dmd", weight: float = 1.0, sources: Sequence[str] | None = None) -> None:
        super().__init__(name, weight, sources=sources)

    def forward(self, step: Step) -> Tensor:
        """The loss whose gradient is DMD's direction."""
        real, fake = self.needed(step.real_x0, "real_x0"), self.needed(step.fake_x0, "fake_x0")
        gradient = dmd_gradient(step.x0_hat, real, fake, step.grid.valid)
        return dmd_loss(step.x0_hat, gradient, step.grid.valid)
