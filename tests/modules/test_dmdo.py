"""Stage 3: the trajectory is the student's own, and everything is compared along it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.flow.sampler import Sampler
from hyperbagel.flow.schedule import timesteps
from hyperbagel.losses.base import Step
from hyperbagel.modules.dmdo import DMDO, DMDOSettings
from hyperbagel.training.distillation import StageSettings

from .distillation import adam, batches, fit, sgd


def steps_of(stage: DMDO, count: int, folder: Path) -> dict[str, list[Step]]:
    """What the loss terms saw while training on `count` batches."""
    seen: dict[str, list[Step]] = {"critic": [], "student": []}
    original = stage.total

    def spy(step: Step, update: str):  # type: ignore[no-untyped-def]
        seen[update].append(step)
        return original(step, update)  # type: ignore[arg-type]

    stage.total = spy  # type: ignore[method-assign, assignment]
    fit(stage, batches(count, mixed_sizes=True), folder)
    return seen


def own_trajectory(stage: DMDO, step: Step) -> torch.Tensor:
    """The student's ODE from this step's x_T, by the public sampler, one image after the other."""
    assert step.scales is not None and step.target is not None
    x_noise = step.x_t + (1 - step.t)[:, None, None] * step.target
    rows = []
    for row in range(len(x_noise)):
        index = torch.tensor([row])
        contexts = type(step.contexts)(step.contexts.full.rows(index))
        size = step.grid.sizes[row]
        grid = stage.model.latent_grid([(size[0] * 8, size[1] * 8)])
        n = size[0] * size[1]
        x, t = x_noise[row : row + 1, :n], timesteps(stage.settings.steps, stage.settings.shift)
        scales = type(step.scales)(step.scales.text[index], step.scales.image[index])
        states = [x]
        with torch.no_grad():
            for a, b in pairwise(t):
                v = stage.model.velocity(x, a[None], contexts.full, grid, stage.student, scales)
                x = x + (b - a) * v
                states.append(x)
        rows.append(torch.stack(states)[:, 0])
    padded = torch.nn.utils.rnn.pad_sequence([r.transpose(0, 1) for r in rows], batch_first=True)
    return padded.permute(2, 0, 1, 3)


def test_fake_target_is_the_students_own_displacement(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """x_T - x_0 of the student's own ODE, at a point on the line between them; no fresh noise."""
    stage = DMDO(nano_folder, nano_branch, sgd(0.0), sgd(0.0), DMDOSettings(fake_updates=3))
    for step in steps_of(stage, 2, tmp_path)["critic"]:
        assert step.target is not None
        states = own_trajectory(stage, step)
        valid = torch.ones_like(step.target[..., 0]) if step.grid.valid is None else step.grid.valid
        shown = valid[..., None].bool().expand_as(step.target)
        torch.testing.assert_close(step.target[shown], (states[0] - states[-1])[shown], atol=2e-5, rtol=1e-4)
        line = (1 - step.t)[:, None, None] * states[-1] + step.t[:, None, None] * states[0]
        torch.testing.assert_close(step.x_t[shown], line[shown], atol=2e-5, rtol=1e-4)


def test_student_repeats_a_step_of_that_trajectory(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    stage = DMDO(nano_folder, nano_branch, sgd(0.0), sgd(0.0), DMDOSettings(fake_updates=1))
    seen = steps_of(stage, 4, tmp_path)
    grid = timesteps(6, 3.0)
    starts = set()
    for critic, step in zip(seen["critic"], seen["student"], strict=True):
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
    stage = DMDO(nano_folder, nano_branch, adam(), adam(), DMDOSettings(fake_from=nano_branch))
    assert stage.teacher_branch is None
    fake, student = stage.fake.state_dict(), stage.student.state_dict()
    assert fake.keys() == student.keys() and all(torch.equal(fake[name], student[name]) for name in fake)
    assert all(parameter.requires_grad for parameter in stage.fake.parameters())
    with pytest.raises(CheckpointError, match=r"missing\.safetensors"):
        DMDO(nano_folder, nano_branch, adam(), adam(), DMDOSettings(fake_from="missing.safetensors"))


def test_ratio_of_updates(nano_folder: str, tmp_path: Path) -> None:
    stage = DMDO(nano_folder, None, adam(), adam(), DMDOSettings(fake_updates=3, student_every=2))
    fit(stage, batches(4), tmp_path)
    assert int(stage.student_step) == 2 and stage.backward_passes.tolist() == [2, 12, 0, 0]


def test_ablation_draws_fresh_noise(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    stage = DMDO(nano_folder, nano_branch, sgd(0.0), sgd(0.0), DMDOSettings(fake_updates=2, renoise="sde"))
    one, two = steps_of(stage, 1, tmp_path)["critic"]
    assert one.target is not None and two.target is not None
    assert not torch.allclose(one.target, two.target)


def test_gradient_through_the_whole_trajectory(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """What is judged is the ODE's own end, and all its steps share in the gradient."""
    settings = DMDOSettings(fake_updates=1, renoise="sde", through="trajectory")
    stage = DMDO(nano_folder, nano_branch, sgd(0.0), sgd(0.0), settings)
    original, compared = stage.total, []

    def compare(step: Step, update: str):  # type: ignore[no-untyped-def]
        if update == "student":
            x, weight = step.x_t, stage.student.llm2vae.weight
            for a, b in pairwise(timesteps(6, 3.0)):
                t = a.expand(len(x))
                v = stage.model.velocity(x, t, step.contexts.full, step.grid, stage.student, step.scales)
                x = x + (b - a) * v
            torch.testing.assert_close(step.output, x, atol=2e-5, rtol=1e-4)
            found, expected = (
                torch.autograd.grad(end.square().sum(), weight, retain_graph=True)[0] for end in (step.output, x)
            )
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
            compared.append(update)
        return original(step, update)  # type: ignore[arg-type]

    stage.total = compare  # type: ignore[method-assign, assignment]
    fit(stage, batches(2), tmp_path)
    assert len(compared) == 2


def test_student_samples_like_its_distilled_teacher_says(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """With teacher and fake branch equal there is nothing to move towards."""
    stage = DMDO(nano_folder, nano_branch, adam(), sgd(0.0), DMDOSettings(), StageSettings(teacher=nano_branch))
    run = fit(stage, batches(1), tmp_path)
    assert run.logged_metrics["loss/dmd"] < 1e-10 and run.logged_metrics["grad_norm/student"] < 1e-4
    assert stage.sampler == Sampler(6, 3.0, stage.settings.generation)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="fake_updates"):
        DMDOSettings(fake_updates=0)
    with pytest.raises(ValueError, match="times"):
        DMDOSettings(times=(0.5, 0.5))
