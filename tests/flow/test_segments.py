"""Times of trajectory-segmented consistency distillation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperbagel.flow.schedule import shift_time, timesteps
from hyperbagel.flow.segments import Segments, SegmentTimes


def boundaries(segments: Segments, times: SegmentTimes) -> Tensor:
    """The highest edge strictly below each t_n; edges that equal t_n up to rounding are t_n itself."""
    edges = shift_time(torch.arange(segments.count + 1) / segments.count, segments.shift)
    return torch.stack([edges[edges < t - 1e-6].max() for t in times.t_n])


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 8),
    steps=st.integers(8, 60),
    shift=st.sampled_from([1.0, 3.0, 4.5]),
    position=st.floats(0, 1, width=32),
)
@example(count=6, steps=13, shift=3.0, position=9.999999747378752e-06)  # rounded below its boundary on some processors
def test_ends_stay_inside_the_segment_of_every_grid_point(
    count: int, steps: int, shift: float, position: float
) -> None:
    """boundary <= t_end <= t_next < t_n for every t_n, those on boundaries included, and t_n is above its boundary."""
    segments = Segments(count, steps, shift)
    n = torch.arange(1, steps + 1)
    times = segments.times(n, torch.full((steps,), position))
    boundary = boundaries(segments, times)
    assert (boundary <= times.t_end).all()
    assert (times.t_end <= times.t_next).all()
    assert (times.t_next < times.t_n).all()
    assert torch.equal(segments.times(n, torch.zeros(steps)).t_end, boundary)


def test_by_hand() -> None:
    """6 steps in 3 segments without shift: edges 0, 1/3, 2/3, 1; grid sixths."""
    times = Segments(3, 6, 1.0).times(torch.tensor([6, 5, 4, 3, 2, 1]), torch.full((6,), 0.5))
    torch.testing.assert_close(boundaries(Segments(3, 6, 1.0), times), torch.tensor([2, 2, 1, 1, 0, 0]) / 3)
    torch.testing.assert_close(times.t_next, torch.tensor([5, 4, 3, 2, 1, 0]) / 6)
    torch.testing.assert_close(times.t_end, torch.tensor([4.5, 4, 2.5, 2, 0.5, 0]) / 6)


def test_segments_end_where_the_few_step_sampler_stops() -> None:
    grid = timesteps(6, 3.0)
    times = Segments(3, 48, 3.0).times(torch.arange(1, 49), torch.zeros(48))
    for boundary in times.t_end.unique():
        assert (grid - boundary).abs().min() < 1e-6


def test_whole_segment_is_drawn_from() -> None:
    times = Segments(3, 48, 3.0).draw(20_000, torch.Generator().manual_seed(0))
    assert set(times.t_n.unique().tolist()) == set(shift_time(torch.arange(1, 49) / 48, 3.0).tolist())
    boundary = boundaries(Segments(3, 48, 3.0), times)
    inside = times.t_next > boundary
    position = ((times.t_end - boundary) / (times.t_next - boundary))[inside]
    assert position.min() < 0.02 and position.max() > 0.98


def test_teacher_stops_at_a_boundary_between_grid_points() -> None:
    """With 4 steps in 3 segments the point 3/4 lies above the edge 2/3, and 1/2 below it."""
    times = Segments(3, 4, 1.0).times(torch.tensor([3]), torch.tensor([1.0]))
    torch.testing.assert_close(times.t_next, torch.tensor([2 / 3]))
    torch.testing.assert_close(times.t_end, torch.tensor([2 / 3]))


def test_teacher_walks_several_steps_but_not_out_of_the_segment() -> None:
    """Six steps in two segments; two steps of the teacher, of which only one is left from 4/6 and from 1/6."""
    times = Segments(2, 6, 1.0, teacher_steps=2).times(torch.tensor([6, 4, 1]), torch.zeros(3))
    torch.testing.assert_close(times.path, torch.tensor([[6, 4, 1], [5, 3, 0], [4, 3, 0]]) / 6)
    torch.testing.assert_close(times.t_end, torch.tensor([3, 3, 0]) / 6)


def test_whole_segments_are_the_steps_of_a_sampler() -> None:
    """All jumps start and end where the six-step sampler does, and the teacher's steps divide them evenly."""
    grid = timesteps(6, 3.0)
    times = Segments(6, 24, 3.0, teacher_steps=4, whole=True).draw(500, torch.Generator().manual_seed(0))
    start = (times.t_n[:, None] - grid).abs().argmin(1)
    assert set(start.tolist()) == set(range(6))
    torch.testing.assert_close(times.t_n, grid[start])
    torch.testing.assert_close(times.t_end, grid[start + 1])
    assert torch.equal(times.t_next, times.t_end)
    assert Segments(6, 24, teacher_steps=4, whole=True).teacher_arrives
    assert not Segments(6, 24, teacher_steps=3, whole=True).teacher_arrives
    assert not Segments(6, 24, teacher_steps=4).teacher_arrives
    torch.testing.assert_close(times.path[:, start == 2][:, 0], timesteps(24, 3.0)[8:13])


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ({"count": 5, "steps": 4}, "5 segments of 4 steps"),
        ({"count": 5, "steps": 24, "whole": True}, "do not divide 24"),
        ({"teacher_steps": 0}, "teacher_steps is 0"),
    ],
)
def test_impossible_segments_are_refused(segments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segments(**segments)
