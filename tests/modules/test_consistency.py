"""Stages 1 and 2: what they compare, and that they learn it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyperbagel.flow.randomness import step_generator
from hyperbagel.flow.schedule import interpolate, shift_time, timesteps
from hyperbagel.flow.segments import SegmentTimes
from hyperbagel.losses.base import Step
from hyperbagel.modules.consistency import TSCD, CFGDistillation, TSCDSettings, jump
from hyperbagel.training.distillation import StageSettings
from hyperbagel.training.episode import prepare, target_tokens

from .distillation import HEADS, adam, batches, fit, make_stage, sgd, snapshot, steps_of


def test_student_approaches_the_guided_teacher(nano_folder: str, tmp_path: Path) -> None:
    """The loss of fixed batches falls, and the learnt scales matter."""
    stage = CFGDistillation(nano_folder, adam(3e-3))
    losses: list[float] = []
    original = stage.total

    def spy(step: Step, update: str) -> Tensor:
        loss = original(step, update)  # type: ignore[arg-type]
        losses.append(float(loss))
        return loss

    stage.total = spy  # type: ignore[method-assign, assignment]
    fit(stage, batches(2) * 45, tmp_path)
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    prepared = prepare(stage.model, batches(1)[0], variants=False)
    x_t, t = torch.randn(2, 4, stage.model.config.latent_token_dim), torch.full((2,), 0.8)
    one, other = (
        stage.model.velocity(
            x_t,
            t,
            prepared.contexts.full,
            prepared.grid,
            stage.student,
            prepared.scales(torch.full((2,), s), torch.ones(2)),
        )
        for s in (1.0, 5.0)
    )
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_training_times_follow_the_shift(shift: float, nano_folder: str, tmp_path: Path) -> None:
    """Of the same uniform draws."""
    stage = CFGDistillation(nano_folder, sgd(0.0), timestep_shift=shift)
    seen: list[Tensor] = []
    original = stage.total

    def spy(step: Step, update: str) -> Tensor:
        seen.append(step.t)
        return original(step, update)  # type: ignore[arg-type]

    stage.total = spy  # type: ignore[method-assign, assignment]
    fit(stage, batches(2), tmp_path)
    expected = []
    for number, batch in enumerate(batches(2)):
        prepared, generator = prepare(stage.model, batch, variants=False), step_generator(0, 0, number)
        stage.draw_noise(prepared, generator), stage.draw_scales(prepared, generator)
        expected.append(shift_time(torch.rand(len(batch), generator=generator), shift))
    torch.testing.assert_close(seen, expected)


def test_tscd_step_by_hand(nano_folder: str, nano_branch: str) -> None:
    """Teacher's Euler step to t_next, EMA student's jump from there to t_end."""
    stage = TSCD(nano_folder, nano_branch, heads=HEADS, settings=StageSettings(teacher=nano_branch))
    with torch.no_grad():
        for parameter in stage.ema.parameters():
            parameter += 0.01
    prepared = prepare(stage.model, batches(1)[0], variants=False)
    scales = prepared.scales(torch.tensor([2.0, 3.0]), torch.ones(2))
    times = SegmentTimes(*(torch.tensor(x) for x in ([[0.9, 0.5], [0.8, 0.4]], [0.7, 0.4], [0.6, 0.4])))
    x_t = interpolate(target_tokens(stage.model, prepared), torch.ones(()), times.t_n[:, None, None])
    real = stage.target(prepared, scales, x_t, times)
    context, grid = prepared.contexts.full, prepared.grid
    with torch.no_grad():
        teacher = stage.model.velocity(x_t, times.t_n, context, grid, stage.teacher_branch, scales)
        x_next = x_t - torch.tensor([0.1, 0.1])[:, None, None] * teacher
        ema = stage.model.velocity(x_next, times.t_next, context, grid, stage.ema, scales)
        expected = x_next - torch.tensor([0.1, 0.0])[:, None, None] * ema
    torch.testing.assert_close(real, expected)
    torch.testing.assert_close(jump(x_t, teacher, times.t_n, times.t_next), x_next)


def test_distance_compares_velocities_to_the_end_of_the_teachers_way(
    nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    """Over whole segments the target's velocity leads to where two Euler steps of the teacher arrive."""
    tscd = TSCDSettings(
        segments=6, grid_steps=12, teacher_steps=2, whole_segments=True, adversarial_weight=0, mse_weight=1
    )
    stage = TSCD(nano_folder, nano_branch, sgd(0.0), tscd=tscd, settings=StageSettings(teacher=nano_branch))
    fine = timesteps(12, 3.0)
    for step in steps_of(stage, 2, tmp_path):
        assert step.output is step.velocity and step.target is not None
        start = (step.t[:, None] - fine).abs().argmin(1)
        x = step.x_t
        for k in range(2):
            with torch.no_grad():
                v = stage.model.velocity(
                    x, fine[start + k], step.contexts.full, step.grid, stage.teacher_branch, step.scales
                )
            x = x - (fine[start + k] - fine[start + k + 1])[:, None, None] * v
        torch.testing.assert_close(jump(step.x_t, step.target, step.t, fine[start + 2]), x, atol=1e-5, rtol=1e-4)


def test_jumps_begin_where_the_student_comes_along(nano_folder: str, nano_branch: str) -> None:
    """On policy, at the states of the moving average's own sampling."""
    tscd = TSCDSettings(
        segments=6, grid_steps=6, whole_segments=True, on_policy=True, adversarial_weight=0, mse_weight=1
    )
    stage = TSCD(nano_folder, nano_branch, tscd=tscd)
    with torch.no_grad():
        for parameter in stage.ema.parameters():
            parameter += 0.01
    prepared = prepare(stage.model, batches(1)[0], variants=False)
    scales = prepared.scales(torch.tensor([2.0, 3.0]), torch.ones(2))
    grid, noise = timesteps(6, 3.0), torch.randn(2, 4, stage.model.config.latent_token_dim)
    x, states = noise, [noise]
    for t, s in pairwise(grid):
        with torch.no_grad():
            v = stage.model.velocity(x, t.expand(2), prepared.contexts.full, prepared.grid, stage.ema, scales)
        x = x + (s - t) * v
        states.append(x)
    for first, second in ((0, 5), (3, 1)):
        begins = stage.start(prepared, scales, noise, grid[[first, second]])
        torch.testing.assert_close(begins, torch.stack([states[first][0], states[second][1]]), atol=1e-5, rtol=1e-4)
    for wrong in (
        TSCDSettings(on_policy=True),
        TSCDSettings(segments=3, grid_steps=6, whole_segments=True, on_policy=True),
    ):
        with pytest.raises(ValueError, match="on_policy needs whole_segments"):
            TSCD(nano_folder, nano_branch, tscd=wrong)


def test_ema_follows_student_updates_only(nano_folder: str, tmp_path: Path) -> None:
    stage = TSCD(nano_folder, None, sgd(0.1), adam(), TSCDSettings(ema_decay=0.75, student_every=2), HEADS)
    start = snapshot(stage.student)
    fit(stage, batches(3), tmp_path)
    assert int(stage.student_step) == 1 and int(stage.backward_passes[1]) == 3
    for name, value in stage.ema.named_parameters():
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * stage.student.get_parameter(name))


def test_ablation_with_distance_has_no_critic(nano_folder: str, tmp_path: Path) -> None:
    stage = TSCD(nano_folder, None, adam(), tscd=TSCDSettings(adversarial_weight=0, mse_weight=1))
    run = fit(stage, batches(2), tmp_path)
    assert stage.critic is None and len(run.optimizers) == 1
    assert "loss/consistency" in run.logged_metrics and "loss/critic_latent" not in run.logged_metrics
    with pytest.raises(ValueError, match="has no critic"):
        stage.add_loss(make_term("critic"))
    with pytest.raises(ValueError, match="adversarial_weight or mse_weight"):
        TSCDSettings(adversarial_weight=0)


def make_term(update: str):  # type: ignore[no-untyped-def]
    from hyperbagel.losses.terms import MeanSquaredError

    return MeanSquaredError("other", update=update)  # type: ignore[arg-type]


def test_critic_tells_the_two_apart(
    nano_folder: str, nano_branch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a student that stands still, the critic's loss falls to half of that of guessing; single updates vary with
    their times.
    """
    torch.manual_seed(0)  # of the critic's heads
    stage = TSCD(nano_folder, nano_branch, sgd(0.0), adam(3e-3), TSCDSettings(ema_decay=0.999), HEADS)
    with torch.no_grad():
        for parameter in stage.student.llm2vae.parameters():
            parameter += 3  # makes fakes that are easy to tell
    losses = []
    monkeypatch.setattr(
        stage, "log", lambda name, value, **_: losses.append(float(value)) if name == "loss/critic_latent" else None
    )
    fit(stage, batches(2) * 25, tmp_path)
    assert sum(losses[-20:]) / 20 < 1.0


def test_checkpointed_layers_change_nothing(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    plain = make_stage("tscd", nano_folder, nano_branch)
    recomputed = make_stage("tscd", nano_folder, nano_branch)
    recomputed.model.checkpointing = True
    for stage in (plain, recomputed):
        fit(stage, batches(2), tmp_path)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(recomputed.state_dict()[name], value, atol=1e-5, rtol=1e-4)
