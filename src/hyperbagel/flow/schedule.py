"""Rectified flow: data at t = 0, noise at t = 1, velocity pointing from data to noise."""

from __future__ import annotations

import torch
from torch import Tensor


def shift_time(u: Tensor, shift: float) -> Tensor:
    """Timestep shift t = s u / (1 + (s - 1) u): (...) in [0, 1] -> (...) in [0, 1].

    Examples:
        >>> shift_time(torch.tensor([0.0, 0.5, 1.0]), shift=3.0)
        tensor([0.0000, 0.7500, 1.0000])
    """
    return shift * u / (1 + (shift - 1) * u)


def timesteps(steps: int, shift: float) -> Tensor:
    """The sampling grid of exactly `steps` Euler steps: (steps + 1,) float32, from 1 (noise) down to 0 (data).

    The public sampler's `num_timesteps` counts grid points: its 50 are 49 steps. Raises ValueError for steps < 1.

    Examples:
        >>> timesteps(2, shift=3.0)
        tensor([1.0000, 0.7500, 0.0000])
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: sampling needs at least one step")
    return shift_time(torch.linspace(1, 0, steps + 1), shift)


def logit_normal(raw: Tensor, shift: float) -> Tensor:
    """Training times from standard normal draws: sigmoid, then the timestep shift. (...) -> (...)."""
    return shift_time(torch.sigmoid(raw), shift)


def interpolate(x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x_0 + t e, with t broadcastable to x_0.

    Examples:
        >>> interpolate(torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([0.25]))
        tensor([0.2500])
    """
    return (1 - t) * x_0 + t * noise


def velocity_target(x_0: Tensor, noise: Tensor) -> Tensor:
    """v = dx_t / dt = e - x_0.

    Examples:
        >>> velocity_target(torch.tensor([1.0]), torch.tensor([3.0]))
        tensor([2.])
    """
    return noise - x_0


def predict_x0(x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """x_0 estimate x_t - t v, with t broadcastable to x_t.

    Examples:
        >>> predict_x0(torch.tensor([2.0]), torch.tensor([4.0]), torch.tensor([0.5]))
        tensor([0.])
    """
    return x_t - t * velocity


def euler_step(x_t: Tensor, velocity: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Euler step from time t to time s: x_t + (s - t) v, times broadcastable to x_t.

    Examples:
        >>> euler_step(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.5]))
        tensor([0.])
    """
    return x_t + (s - t) * velocity


def jump(x_t: Tensor, velocity: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Euler step of every image from its own time to its own time, in float32. x_t, velocity: (B, n, C); t, s: (B,).

    Examples:
        >>> x_t, velocity = torch.ones(2, 1, 1), torch.ones(2, 1, 1)
        >>> jump(x_t, velocity, torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.5])).flatten()
        tensor([0.5000, 1.0000])
    """
    return euler_step(x_t.float(), velocity.float(), t[:, None, None], s[:, None, None])


def interval_above(t: Tensor, grid: Tensor) -> Tensor:
    """Index i with grid[i] >= t > grid[i + 1], of a sampling grid (N + 1,) that falls from 1 to 0. t: (B,) in [0, 1].

    `grid[i]` is the upper end of the step that holds t; t = 0 belongs to the last step.
    """
    return (torch.searchsorted(grid.flip(0).contiguous(), t.contiguous()) - 1).clamp(min=0).neg() + len(grid) - 2


def noise_favouring_times(u: Tensor, power: float = 3.0) -> Tensor:
    """DMDX's schedule t = 1 - u^power of uniform draws: (...) -> (...); when cubic, half of them are above 0.875.

    Examples:
        >>> noise_favouring_times(torch.tensor([0.0, 0.5, 1.0]))
        tensor([1.0000, 0.8750, 0.0000])
    """
    return 1 - u**power
