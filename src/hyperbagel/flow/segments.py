"""Segments of the time axis, and the times that trajectory-segmented consistency (arXiv 2404.13686) compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hyperbagel.flow.randomness import integers, uniform
from hyperbagel.flow.schedule import shift_time


class SegmentTimes(NamedTuple):
    """Times of one comparison, float32, with t_end <= t_next < t_n, all within the segment that t_n belongs to.

    path: (k + 1, B), the teacher's way in k Euler steps from t_n, where the student starts, to t_next; t_end: (B,),
    where the jumps of student (from t_n) and target (from t_next) end.
    """

    path: Tensor
    t_end: Tensor

    @property
    def t_n(self) -> Tensor:
        """Where the student starts, (B,)."""
        return self.path[0]

    @property
    def t_next(self) -> Tensor:
        """Where the teacher arrives, (B,)."""
        return self.path[-1]


@dataclass(frozen=True)
class Segments:
    """The training grid: `steps` Euler steps under a timestep shift, cut into `count` segments of equal length before
    the shift, so that the boundaries are grid points of every sampler whose steps are a multiple of `count`.

    teacher_steps: Euler steps of the teacher in one comparison; whole: compare jumps over whole segments only, from
    their upper to their lower end.

    Examples:
        >>> times = Segments(count=2, steps=4, shift=1.0).times(n=torch.tensor([4]), position=torch.tensor([0.0]))
        >>> times.t_n, times.t_next, times.t_end
        (tensor([1.]), tensor([0.7500]), tensor([0.5000]))
    """

    count: int = 3
    steps: int = 48
    shift: float = 3.0
    teacher_steps: int = 1
    whole: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.count <= self.steps:
            raise ValueError(f"{self.count} segments of {self.steps} steps: need 1 <= count <= steps")
        if self.teacher_steps < 1:
            raise ValueError(f"teacher_steps is {self.teacher_steps}: the teacher makes at least one step")
        if self.whole and self.steps % self.count:
            raise ValueError(f"{self.count} whole segments: they do not divide {self.steps} grid steps evenly")

    @property
    def teacher_arrives(self) -> bool:
        """Whether the teacher goes all the way to t_end in every comparison."""
        return self.whole and self.teacher_steps * self.count >= self.steps

    def times(self, n: Tensor, position: Tensor) -> SegmentTimes:
        """n: (B,) int64 in [1, steps], where steps is pure noise; position: (B,) in [0, 1], of t_end between the
        segment's boundary (0) and t_next (1), measured before the shift.

        A t_n on a boundary belongs to the segment below it. The teacher stops at the boundary, also where that is not
        on the grid.
        """
        # Integers, so that a point on a boundary is never taken for one above it.
        below = (n * self.count - 1).div(self.steps, rounding_mode="floor")
        boundary = below.float() / self.count
        done = torch.arange(self.teacher_steps + 1, device=n.device)[:, None]
        path = torch.maximum((n - done).float() / self.steps, boundary)
        end = boundary + position * (path[-1] - boundary)
        path, t_end, low = (shift_time(u, self.shift) for u in (path, end, boundary))
        # Rounding, which the shift adds to, must not carry t_end over its neighbours.
        return SegmentTimes(path, t_end.clamp(low, path[-1]))

    def draw(self, images: int, generator: torch.Generator) -> SegmentTimes:
        """Times for a batch: n uniform over the grid, t_end uniform between boundary and t_next (before the shift)."""
        if self.whole:
            segment = integers(1, self.count + 1, images, generator)
            return self.times(segment * (self.steps // self.count), torch.zeros_like(segment, dtype=torch.float32))
        n = integers(1, self.steps + 1, images, generator)
        return self.times(n, uniform(images, (0.0, 1.0), generator))
