"""Stage 3: the trajectory is the student's own, and everything is compared along it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.flow.sampler import Sampler
from hyperbagel.flow.schedule import timesteps
from hyperbagel.losses.base import LossTerm, Step
from hyperbagel.modules.dmdo import DMDO, DMDOMethod
from hyperbagel.training.distillation import DistillationSettings
from tests.distillation import adam, batches, fit, record, sgd, updates


def still(folder: str, branch: str, **method: Any) -> DMDO:
    """Networks that stand still."""
    return DMDO(model=folder, init_from=branch, method=DMDOMethod(**method), student=sgd(0.0), fake=sgd(0.0))


def steps_of(stage: DMDO, count: int, folder: Path) -> tuple[list[Step], list[Step]]:
    """What the loss terms of the fake branch and of the student saw while training on `count` batches."""
    steps = record(stage, "critic"), record(stage, "student")
    fit(stage, batches(count, mixed_sizes=True), folder)
    return steps


def own_trajectory(stage: DMDO, step: Step) -> torch.Tensor:
    """The student's ODE from this step's x_T, by the public sampler, one image after the other."""
    assert step.target_velocity is not None
    x_noise = step.x_t + (1 - step.t)[:, None, None] * step.target_velocity
    rows = []
    for row in range(len(x_noise)):
        index = torch.tensor([row])
        contexts = step.contexts.rows(index)
        size = step.grid.sizes[row]
        grid = stage.model.latent_grid([(size[0] * 8, size[1] * 8)])
        n = size[0] * size[1]
        x, t = x_noise[row : row + 1, :n], timesteps(stage.settings.steps, stage.settings.shift)
        conditions = {name: value[index] for name, value in step.conditions.items()}
        states = [x]
        with torch.no_grad():
            for a, b in pairwise(t):
                v = stage.model.velocity(x, a[None], contexts.full, grid, stage.student, conditions)
                x = x + (b - a) * v
                states.append(x)
        rows.append(torch.stack(states)[:, 0])
    padded = torch.nn.utils.rnn.pad_sequence([r.transpose(0, 1) for r in rows], batch_first=True)
    return padded.permute(2, 0, 1, 3)


def test_fake_target_is_the_students_own_displacement(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """x_T - x_0 of the student's own ODE, at a point on the line between them; no fresh noise."""
    stage = still(nano_folder, nano_branch, fake_updates=3)
    for step in steps_of(stage, 2, tmp_path)[0]:
        assert step.target_velocity is not None
        states = own_trajectory(stage, step)
        valid = torch.ones_like(step.target_velocity[..., 0]) if step.grid.valid is None else step.grid.valid
        shown = valid[..., None].bool().expand_as(step.target_velocity)
        torch.testing.assert_close(step.target_velocity[shown], (states[0] - states[-1])[shown], atol=2e-5, rtol=1e-4)
        line = (1 - step.t)[:, None, None] * states[-1] + step.t[:, None, None] * states[0]
        torch.testing.assert_close(step.x_t[shown], line[shown], atol=2e-5, rtol=1e-4)


def test_student_repeats_a_step_of_that_trajectory(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    stage = still(nano_folder, nano_branch, fake_updates=1)
    fake, student = steps_of(stage, 4, tmp_path)
    grid = timesteps(6, 3.0)
    starts = set()
    for critic, step in zip(fake, student, strict=True):
        states = own_trajectory(stage, critic)
        for row in range(len(step.t)):
            i = int((grid - step.t[row]).abs().argmin())
            starts.add(i)
            assert grid[i] == step.t[row]
            n = step.grid.sizes[row][0] * step.grid.sizes[row][1]
            torch.testing.assert_close(step.x_t[row, :n], states[i, row, :n], atol=2e-5, rtol=1e-4)
    assert len(starts) > 2 and 6 not in starts


def test_fake_branch_starts_as_a_file_says(nano_folder: str, nano_branch: str) -> None:
    """The guided original teaches, the fake branch starts as the student does: near its distribution."""
    stage = DMDO(model=nano_folder, init_from=nano_branch, method=DMDOMethod(fake_from=nano_branch))
    assert stage.teacher_branch is None
    fake, student = stage.fake.state_dict(), stage.student.state_dict()
    assert fake.keys() == student.keys() and all(torch.equal(fake[name], student[name]) for name in fake)
    assert all(parameter.requires_grad for parameter in stage.fake.parameters())
    with pytest.raises(CheckpointError, match=r"missing\.safetensors"):
        DMDO(model=nano_folder, init_from=nano_branch, method=DMDOMethod(fake_from="missing.safetensors"))


def test_ratio_of_updates(nano_folder: str, tmp_path: Path) -> None:
    method = DMDOMethod(fake_updates=3, student_every=2)
    stage = DMDO(model=nano_folder, method=method, student=adam(), fake=adam())
    run = fit(stage, batches(4), tmp_path)
    assert int(stage.student_step) == 2 and updates(run) == [2, 12]


def test_ablation_draws_fresh_noise(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    stage = still(nano_folder, nano_branch, fake_updates=2, renoise="sde")
    one, two = steps_of(stage, 1, tmp_path)[0]
    assert one.target_velocity is not None and two.target_velocity is not None
    assert not torch.allclose(one.target_velocity, two.target_velocity)


def test_gradient_through_the_whole_trajectory(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """What is judged is the ODE's own end, and all its steps share in the gradient."""
    stage = still(nano_folder, nano_branch, fake_updates=1, renoise="sde", through="trajectory")
    stage.add_loss(compared := AtTheEnd(stage))
    fit(stage, batches(2), tmp_path)
    assert compared.count == 2


class AtTheEnd(LossTerm):
    """Compares the step with the student's ODE, run once more with gradients."""

    def __init__(self, stage: DMDO) -> None:
        super().__init__("compared")
        self.weights, self.count = [stage.student.llm2vae.weight], 0

    def forward(self, step: Step) -> torch.Tensor:
        assert step.student is not None and step.x0 is not None
        x = step.x_t
        for a, b in pairwise(timesteps(6, 3.0)):
            x = x + (b - a) * step.student(x, a.expand(len(x)))
        torch.testing.assert_close(step.x0, x, atol=2e-5, rtol=1e-4)
        found, expected = (
            torch.autograd.grad(end.square().sum(), self.weights, retain_graph=True)[0] for end in (step.x0, x)
        )
        assert expected.any()
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        self.count += 1
        return x.new_zeros(())


def test_student_samples_like_its_distilled_teacher_says(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """With teacher and fake branch equal there is nothing to move towards."""
    settings = DistillationSettings(teacher=nano_branch)
    stage = DMDO(model=nano_folder, init_from=nano_branch, student=adam(), fake=sgd(0.0), settings=settings)
    run = fit(stage, batches(1), tmp_path)
    assert run.logged_metrics["loss/dmd"] < 1e-10 and run.logged_metrics["grad_norm/student"] < 1e-4
    assert stage.sampler == Sampler(6, 3.0, stage.settings.generation)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="fake_updates"):
        DMDOMethod(fake_updates=0)
    with pytest.raises(ValueError, match="times"):
        DMDOMethod(times=(0.5, 0.5))
