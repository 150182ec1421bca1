"""Euler trajectories from noise to data: the one loop that sampling and training use."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from hyperbagel.bagel.branch import Conditions, GenerationBranch, conditions_of
from hyperbagel.bagel.context import GuidedContext
from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.transfer import moved
from hyperbagel.flow.noise import SharedNoise
from hyperbagel.flow.schedule import euler_step

if TYPE_CHECKING:
    from hyperbagel.bagel.model import Bagel


class Velocity(Protocol):
    """The velocity of one batch as a function of noisy latents and times, everything else being bound.

    Examples:
        >>> def straight(x_t, t, s=None):  # any function of this form is one
        ...     return x_t - 1
        ...
        >>> straight(torch.tensor([3.0]), torch.tensor([1.0]))
        tensor([2.])
    """

    def __call__(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        """The velocity (B, n, C) of x_t (B, n, C) at t (B,).

        s: (B,), end of the step that is made with it, for networks that take one; None: the velocity at t itself.
        """
        ...


class Progress(Protocol):
    """Is told of each step that is done."""

    def __call__(self, done: int, steps: int) -> object:
        """done: how many of all the steps."""
        ...


def trajectory(velocity: Velocity, noise: Tensor, grid_t: Tensor, progress: Progress | None = None) -> Tensor:
    """The Euler trajectory of a velocity: (steps + 1, B, n, C) float32, from the noise (B, n, C) to x_0.

    With gradients where they are enabled. grid_t: (steps + 1,), falling from 1 to 0.

    Examples:
        >>> states = trajectory(lambda x, t, s: x, torch.ones(1, 1, 1), torch.tensor([1.0, 0.5, 0.0]))
        >>> states.flatten()
        tensor([1.0000, 0.5000, 0.2500])
    """
    x = noise.float()
    states = [x]
    for done, (t, s) in enumerate(pairwise(grid_t), 1):
        x = euler_step(x, velocity(x, t.expand(len(x)), s.expand(len(x))).float(), t, s)
        states.append(x)
        if progress is not None:
            progress(done, len(grid_t) - 1)
    return torch.stack(states)


@torch.no_grad()
def paired_x0(
    velocity: Velocity,
    noise: Tensor,
    sizes: Sequence[tuple[int, int]],
    grid_t: Tensor,
    shared_noise: SharedNoise | None = None,
) -> Tensor:
    """The x_0 (B, n, C) at which a trajectory arrives from x_T (B, n, C), or from what `shared_noise` leaves of it.

    sizes: rows and columns of latent tokens of each image.
    """
    start = noise if shared_noise is None else shared_noise(noise, sizes)
    return trajectory(velocity, start, moved(grid_t, noise.device))[-1]


def branch_velocity(
    model: Bagel, contexts: GuidedContext, grid: LatentGrid, branch: GenerationBranch, conditions: Conditions
) -> Velocity:
    """One pass of a branch over a batch; of the conditions it gets those that it takes.

    With gradients where they are enabled.
    """

    def velocity(x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        return model.velocity(x_t, t, contexts.full, grid, branch, conditions_of(branch, conditions, t, s))

    return velocity
