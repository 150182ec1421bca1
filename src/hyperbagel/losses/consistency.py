"""Trajectory-segmented consistency distillation (Hyper-SD, arXiv 2404.13686): which times one update compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hyperbagel.flow.schedule import shift_time


class SegmentTimes(NamedTuple):
    """Times of one comparison, each (B,) float32, with boundary <= t_end <= t_next < t_n.

    t_n: where the student starts; t_next: where the teacher's Euler step from t_n arrives; t_end: where the jumps of
    student (from t_n) and target (from t_next) end; boundary: lower end of the segment that t_n belongs to.
    """

    t_n: Tensor
    t_next: Tensor
    t_end: Tensor
    boundary: Tensor


@dataclass(frozen=True)
class Segments:
    """The training grid: `steps` Euler steps under a timestep shift, cut into `count` segments of equal length before
    the shift, so that the boundaries are grid points of every sampler whose steps are a multiple of `count`."""

    count: int = 3
    steps: int = 48
    shift: float = 3.0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= self.steps:
            raise ValueError(f"{self.count} segments of {self.steps} steps: need 1 <= count <= steps")

    def times(self, n: Tensor, position: Tensor) -> SegmentTimes:
        """n: (B,) int64 in [1, steps], where steps is pure noise; position: (B,) in [0, 1], of t_end between the
        segment's boundary (0) and t_next (1), measured before the shift.

        A t_n on a boundary belongs to the segment below it. When the grid does not divide evenly, the teacher's step
        stops at the boundary.
        """
        # Integers, so that a point on a boundary is never taken for one above it.
        below = (n * self.count - 1).div(self.steps, rounding_mode="floor")
        boundary = below.float() / self.count
        following = torch.maximum((n - 1).float() / self.steps, boundary)
        end = boundary + position * (following - boundary)
        times = (n.float() / self.steps, following, end, boundary)
        t_n, t_next, t_end, low = (shift_time(u, self.shift) for u in times)
        # Rounding, which the shift adds to, must not carry t_end over its neighbours.
        return SegmentTimes(t_n, t_next, t_end.clamp(low, t_next), low)

    def draw(self, images: int, generator: torch.Generator) -> SegmentTimes:
        """Times for a batch: n uniform over the grid, t_end uniform between boundary and t_next (before the shift)."""
        n = torch.randint(1, self.steps + 1, (images,), generator=generator)
        return self.times(n, torch.rand(images, generator=generator))
