"""The Euler loop under sampling and training."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperbagel.bagel.branch import DURATION
from hyperbagel.flow.schedule import timesteps
from hyperbagel.flow.trajectory import branch_velocity, trajectory
from tests.distillation import batches, episode_of
from tests.nano import nano_bagel


def test_by_hand() -> None:
    """dx/dt = x t in two steps; each is told where it ends, and when it is done."""
    told: list[tuple[float, float]] = []
    done: list[tuple[int, int]] = []

    def velocity(x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        assert s is not None and t.shape == s.shape == (2,)
        told.append((float(t[0]), float(s[0])))
        return x_t * t[:, None, None]

    states = trajectory(velocity, torch.ones(2, 1, 1), timesteps(2, 1.0), lambda *of: done.append(of))
    assert states[:, 0, 0, 0].tolist() == [1, 0.5, 0.375]
    assert told == [(1, 0.5), (0.5, 0)] and done == [(1, 2), (2, 2)]


def test_a_branch_that_wants_it_is_told_how_long_a_step_is() -> None:
    model = nano_bagel()
    branch = model.generation.copy()
    branch.add_condition(DURATION)
    seen: list[list[float]] = []
    branch.embedder(DURATION).register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].tolist()))
    episode = episode_of(model, batches(1)[0])
    velocity = branch_velocity(model, episode.contexts, episode.grid, branch, episode.conditions)
    grid_t = timesteps(3, 3.0)
    trajectory(velocity, episode.noise, grid_t)
    torch.testing.assert_close(torch.tensor(seen), (grid_t[:-1] - grid_t[1:])[:, None].expand(3, 2))


def test_gradients_pass_the_whole_way() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    end = trajectory(lambda x_t, t, s=None: weight * x_t, torch.ones(1, 1, 1), timesteps(2, 1.0))[-1]
    end.sum().backward()
    # x_0 = (1 - w / 2)²
    torch.testing.assert_close(weight.grad, torch.tensor(0.0))
    assert end.item() == 0
