"""Stage 2: what it compares, and that it learns it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from hyperbagel.flow.schedule import interpolate, jump, timesteps
from hyperbagel.flow.segments import SegmentTimes
from hyperbagel.losses.regression import Regression
from hyperbagel.modules.consistency.tscd import TSCD, TSCDMethod
from hyperbagel.training.distillation import DistillationSettings
from tests.distillation import Logged, adam, batches, episode_of, fit, sgd, snapshot, steps_of, updates
from tests.stages import HEADS, make_stage

SCALES = (torch.tensor([2.0, 3.0]), torch.ones(2))


def test_tscd_step_by_hand(nano_folder: str, nano_branch: str) -> None:
    """Teacher's Euler step to t_next, EMA student's jump from there to t_end."""
    stage = TSCD(model=nano_folder, init_from=nano_branch, settings=DistillationSettings(teacher=nano_branch))
    with torch.no_grad():
        for parameter in stage.ema.parameters():
            parameter += 0.01
    episode = episode_of(stage.model, batches(1)[0], scales=SCALES)
    times = SegmentTimes(*(torch.tensor(x) for x in ([[0.9, 0.5], [0.8, 0.4]], [0.7, 0.4])))
    x_t = interpolate(episode.x_0, torch.ones(()), times.t_n[:, None, None])
    real = stage.target(episode, x_t, times)
    context, grid, conditions = episode.contexts.full, episode.grid, episode.conditions
    with torch.no_grad():
        teacher = stage.model.velocity(x_t, times.t_n, context, grid, stage.teacher_branch, conditions)
        x_next = x_t - torch.tensor([0.1, 0.1])[:, None, None] * teacher
        ema = stage.model.velocity(x_next, times.t_next, context, grid, stage.ema, conditions)
        expected = x_next - torch.tensor([0.1, 0.0])[:, None, None] * ema
    torch.testing.assert_close(real, expected)
    torch.testing.assert_close(jump(x_t, teacher, times.t_n, times.t_next), x_next)


def test_distance_compares_velocities_to_the_end_of_the_teachers_way(
    nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    """Over whole segments the target's velocity leads to where two Euler steps of the teacher arrive."""
    method = TSCDMethod(
        segments=6, grid_steps=12, teacher_steps=2, whole_segments=True, adversarial_weight=0, mse_weight=1
    )
    settings = DistillationSettings(teacher=nano_branch)
    stage = TSCD(model=nano_folder, init_from=nano_branch, method=method, student=sgd(0.0), settings=settings)
    fine = timesteps(12, 3.0)
    for step in steps_of(stage, batches(2), tmp_path):
        assert step.x0 is None and step.target_velocity is not None
        start = (step.t[:, None] - fine).abs().argmin(1)
        x = step.x_t
        for k in range(2):
            with torch.no_grad():
                v = stage.model.velocity(
                    x, fine[start + k], step.contexts.full, step.grid, stage.teacher_branch, step.conditions
                )
            x = x - (fine[start + k] - fine[start + k + 1])[:, None, None] * v
        torch.testing.assert_close(
            jump(step.x_t, step.target_velocity, step.t, fine[start + 2]), x, atol=1e-5, rtol=1e-4
        )


def test_jumps_begin_where_the_student_comes_along(nano_folder: str, nano_branch: str) -> None:
    """On policy, at the states of the moving average's own sampling."""
    method = TSCDMethod(
        segments=6, grid_steps=6, whole_segments=True, on_policy=True, adversarial_weight=0, mse_weight=1
    )
    stage = TSCD(model=nano_folder, init_from=nano_branch, method=method)
    with torch.no_grad():
        for parameter in stage.ema.parameters():
            parameter += 0.01
    episode = episode_of(stage.model, batches(1)[0], scales=SCALES)
    grid, noise = timesteps(6, 3.0), episode.noise
    x, states = noise, [noise]
    for t, s in pairwise(grid):
        with torch.no_grad():
            v = episode.velocity(stage.ema)(x, t.expand(2))
        x = x + (s - t) * v
        states.append(x)
    for first, second in ((0, 5), (3, 1)):
        begins = stage.start(episode, grid[[first, second]])
        torch.testing.assert_close(begins, torch.stack([states[first][0], states[second][1]]), atol=1e-5, rtol=1e-4)
    for wrong in (
        TSCDMethod(on_policy=True),
        TSCDMethod(segments=3, grid_steps=6, whole_segments=True, on_policy=True),
    ):
        with pytest.raises(ValueError, match="on_policy needs whole_segments"):
            TSCD(model=nano_folder, init_from=nano_branch, method=wrong)


def test_ema_follows_student_updates_only(nano_folder: str, tmp_path: Path) -> None:
    method = TSCDMethod(ema_decay=0.75, student_every=2, heads=HEADS)
    stage = TSCD(model=nano_folder, method=method, student=adam(0.1), critic=adam())
    start = snapshot(stage.student)
    run = fit(stage, batches(3), tmp_path)
    assert int(stage.student_step) == 1 and updates(run) == [1, 3]
    for name, value in stage.ema.named_parameters():
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * stage.student.get_parameter(name))


def test_ablation_with_distance_has_no_critic(nano_folder: str, tmp_path: Path) -> None:
    method = TSCDMethod(adversarial_weight=0, mse_weight=1)
    stage = TSCD(model=nano_folder, method=method, student=adam())
    run = fit(stage, batches(2), tmp_path)
    assert stage.critic is None and len(run.optimizers) == 1
    assert "loss/consistency" in run.logged_metrics and "loss/critic_latent" not in run.logged_metrics
    with pytest.raises(ValueError, match="has no critic"):
        stage.add_loss(Regression("other", update="critic"))
    with pytest.raises(ValueError, match="adversarial_weight or mse_weight"):
        TSCDMethod(adversarial_weight=0)


def test_critic_tells_the_two_apart(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """With a student that stands still, the critic's loss falls to half of that of guessing; single updates vary with
    their times.
    """
    torch.manual_seed(0)  # of the critic's heads
    method = TSCDMethod(ema_decay=0.999, heads=HEADS)
    stage = TSCD(model=nano_folder, init_from=nano_branch, method=method, student=sgd(0.0), critic=adam(3e-3))
    with torch.no_grad():
        for parameter in stage.student.llm2vae.parameters():
            parameter += 3  # makes fakes that are easy to tell
    logged, told = Logged("loss/critic_latent"), Logged("critic/latent/auc")
    fit(stage, batches(2) * 25, tmp_path, callbacks=[logged, told])
    assert sum(logged.values[-20:]) / 20 < 1.0
    assert sum(told.values[-20:]) / 20 > 0.8


def test_checkpointed_layers_change_nothing(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    plain = make_stage("tscd", nano_folder, nano_branch, adam())
    recomputed = make_stage("tscd", nano_folder, nano_branch, adam())
    recomputed.model.checkpointing = True
    for stage in (plain, recomputed):
        fit(stage, batches(2), tmp_path)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(recomputed.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def test_the_critic_learns_alone_first_and_is_shown_where_jumps_began(
    nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    """Three batches for the critic alone, then one in two for the student."""
    method = TSCDMethod(critic_first=3, student_every=2, show_start=True, heads=HEADS)
    stage = TSCD(model=nano_folder, init_from=nano_branch, method=method, student=adam(), critic=adam())
    run = fit(stage, batches(7), tmp_path)
    assert int(stage.student_step) == 2 and sorted(updates(run)) == [2, 7]  # the student's on batches 4 and 6
    assert stage.critic is not None
    of_the_jump = stage.critic.backbone.vae2llm.weight[:, stage.model.config.latent_token_dim :]
    assert of_the_jump.abs().max() > 0


def test_an_impossible_start_of_the_game_is_refused() -> None:
    with pytest.raises(ValueError, match="critic_first is -1"):
        TSCDMethod(critic_first=-1)
