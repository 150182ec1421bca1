"""Times, interpolation and Euler steps."""

from __future__ import annotations

import pytest
import torch

from hyperbagel.flow.schedule import (
    euler_step,
    interpolate,
    interval_above,
    logit_normal,
    noise_favouring_times,
    predict_x0,
    shift_time,
    timesteps,
    velocity_target,
)


@pytest.mark.parametrize("steps", [1, 6, 50])
def test_grid_has_exactly_the_steps_from_noise_to_data(steps: int) -> None:
    grid = timesteps(steps, 3.0)
    assert len(grid) == steps + 1 and grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()
    # The public sampler's num_timesteps counts points of the grid.
    u = torch.linspace(1, 0, steps + 1)
    torch.testing.assert_close(grid, 3 * u / (1 + 2 * u))
    torch.testing.assert_close(timesteps(steps, 1.0), u)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        timesteps(0, 3.0)


def test_shifted_times_keep_their_ends_and_order() -> None:
    u = torch.linspace(0, 1, 11)
    for shift in (0.5, 1.0, 3.0):
        t = shift_time(u, shift)
        assert t[0] == 0 and t[-1] == 1 and (t.diff() > 0).all()
        torch.testing.assert_close(shift_time(t, 1 / shift), u)
    raw = torch.tensor([-torch.inf, 0.0, torch.inf])
    torch.testing.assert_close(logit_normal(raw, 3.0), torch.tensor([0.0, 0.75, 1.0]))


def test_the_exact_velocity_leads_anywhere_on_the_path() -> None:
    x_0, noise = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    t, s = torch.tensor([0.9, 0.5, 0.1])[:, None, None], torch.tensor([0.3, 0.0, 1.0])[:, None, None]
    x_t, v = interpolate(x_0, noise, t), velocity_target(x_0, noise)
    torch.testing.assert_close(euler_step(x_t, v, t, s), interpolate(x_0, noise, s))
    torch.testing.assert_close(predict_x0(x_t, v, t), x_0)
    torch.testing.assert_close(interpolate(x_0, noise, torch.tensor(1.0)), noise)


def test_upper_end_of_the_interval_that_holds_a_time() -> None:
    grid = timesteps(4, 1.0)  # 1, .75, .5, .25, 0
    t = torch.tensor([1.0, 0.76, 0.75, 0.6, 0.25, 0.1, 0.0])
    assert interval_above(t, grid).tolist() == [0, 0, 1, 1, 3, 3, 3]
    for steps in (1, 6):
        grid = timesteps(steps, 3.0)
        t = torch.rand(500, generator=torch.Generator().manual_seed(0))
        i = interval_above(t, grid)
        assert (grid[i] >= t).all() and (grid[i + 1] < t).all()


def test_times_favour_noise() -> None:
    t = noise_favouring_times(torch.linspace(0, 1, 1001))
    assert t[0] == 1 and t[-1] == 0
    assert float(t.median()) == pytest.approx(0.875)
    nearer = noise_favouring_times(torch.linspace(0, 1, 1001), 9.0)
    assert nearer[0] == 1 and nearer[-1] == 0
    assert float(nearer.median()) == pytest.approx(1 - 0.5**9)
