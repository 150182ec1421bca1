"""Reward tuning: who draws, who judges, and what the student learns of it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyperbagel.flow.schedule import timesteps
from hyperbagel.flow.trajectory import trajectory
from hyperbagel.modules.reward_tuning import RewardTuning, RewardTuningMethod
from hyperbagel.rewards.base import Reward
from hyperbagel.training.distillation import DistillationSettings
from tests.distillation import Logged, adam, batches, fit, sgd, steps_of

STILL = 1 - 1e-9
"""An average that does not follow the student."""


class Brightness(Reward):
    """A reward that is easily checked, and has no gradient to give."""

    def score(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        assert len(images) == len(prompts) and not any(image.requires_grad for image in images)
        return torch.stack([image.mean() for image in images])


def test_the_student_learns_where_the_averages_pictures_get_better(
    nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    """Three looks at the trajectories of two pictures of each of two documents: early, the average's velocity and the
    lesson, the same for both pictures; late, the initial branch's velocity."""
    method = RewardTuningMethod(group=2, draws=3, strength=0.5, lowest_time=0.8, ema_decay=STILL)
    stage = RewardTuning(model=nano_folder, init_from=nano_branch, reward=Brightness(), method=method, student=sgd(0.0))
    with torch.no_grad():
        for parameter in stage.ema.parameters():
            parameter += 0.01
    ema, grid = deepcopy(stage.ema), timesteps(6, 3.0)
    steps = steps_of(stage, batches(1), tmp_path)
    # The first draws of the step, which the pictures come from.
    stage.batches_seen = 0
    episode = stage.begin(batches(1)[0].repeat(2), stage.draw_neighbours)
    with torch.no_grad():
        states = trajectory(episode.velocity(ema), episode.noise, grid)
    brightness = torch.stack([p.mean() for p in stage.model.decode_latents(states[-1], episode.grid)])
    difference = brightness[:2] - brightness[2:]
    advantage = (difference / difference.abs().max())[:, None, None]
    lesson = (0.5 * advantage * (states[-1][:2] - states[-1][2:]) / 2).repeat(2, 1, 1)
    assert len(steps) == 3
    for step in steps:
        assert step.batch.keys[:2] == step.batch.keys[2:] and step.target_velocity is not None
        number = (grid[:-1] == step.t[:, None]).nonzero()[:, 1]
        torch.testing.assert_close(step.x_t, states[number, torch.arange(4)], atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            old, initial = (episode.velocity(branch)(step.x_t, step.t) for branch in (ema, stage.initial_branch()))
        expected = torch.where(step.t[:, None, None] >= 0.8, old - lesson, initial)
        torch.testing.assert_close(step.target_velocity, expected, atol=1e-4, rtol=1e-3)
    assert len({bool(early) for step in steps for early in step.t >= 0.8}) == 2


def test_the_noise_of_a_document_is_alike(nano_folder: str) -> None:
    """Standard normal, with the wanted correlation within a group and none between documents."""
    method = RewardTuningMethod(group=3, shared_noise=0.75)
    stage = RewardTuning(model=nano_folder, reward=Brightness(), method=method)
    generator, shape = torch.Generator().manual_seed(0), (6, 4, stage.model.config.latent_token_dim)
    rows = torch.cat([stage.draw_neighbours(shape, generator).flatten(1) for _ in range(200)], 1)
    documents = torch.arange(6) % 2
    expected = torch.where(documents[:, None] == documents, 0.75, 0.0).fill_diagonal_(1)
    torch.testing.assert_close(rows.cov(), expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("editing", [True, False])
def test_edits_are_judged_only_if_wanted(editing: bool, nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """Else they are held to the initial branch."""
    method = RewardTuningMethod(group=3, draws=1, lowest_time=0, editing=editing)
    stage = RewardTuning(model=nano_folder, init_from=nano_branch, reward=Brightness(), method=method, student=sgd(0.0))
    steps = steps_of(stage, batches(2), tmp_path)
    assert [step.batch.source for step in steps] == ["generation", "editing"]
    targets = [step.target_velocity for step in steps]
    moved = [
        target is not None and not torch.allclose(target, step.velocity, atol=1e-5)
        for target, step in zip(targets, steps, strict=True)
    ]
    assert moved == [True, editing]


def test_pictures_get_better(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """Without a gradient of the reward; where nothing is judged, the student stays as it is."""
    method = RewardTuningMethod(strength=5, lowest_time=0, editing=False, ema_decay=0.5)
    rise = []
    for kind in (0, 1):
        stage = RewardTuning(
            model=nano_folder,
            init_from=nano_branch,
            reward=Brightness(),
            method=method,
            student=adam(1e-2),
            settings=DistillationSettings(steps=2),
        )
        logged = Logged("reward/tuning")
        fit(stage, batches(2)[kind:][:1] * 40, tmp_path, callbacks=[logged])
        rise.append(sum(logged.values[-5:]) / 5 - sum(logged.values[:5]) / 5)
    assert rise[0] > 0.01 and rise[0] > 3 * abs(rise[1])


def test_settings_that_cannot_work_are_refused(nano_folder: str) -> None:
    with pytest.raises(ValueError, match=r"settings\.steps is 1"):
        RewardTuning(model=nano_folder, reward=Brightness(), settings=DistillationSettings(steps=1))
    method = RewardTuningMethod()
    for wrong in (
        {"group": 1},
        {"draws": 0},
        {"strength": 0},
        {"lowest_time": 2},
        {"ema_decay": 1},
        {"shared_noise": 1},
    ):
        with pytest.raises(ValueError, match="need "):
            replace(method, **wrong)  # type: ignore[arg-type]


def test_starts_from_the_original_branch_too(nano_folder: str, tmp_path: Path) -> None:
    """Which takes no scales, and is held to all the same."""
    method = RewardTuningMethod(group=2, lowest_time=1, editing=False)
    stage = RewardTuning(model=nano_folder, reward=Brightness(), method=method, student=sgd(0.0))
    steps = steps_of(stage, batches(2), tmp_path)
    # Fresh guidance embedders add nothing yet.
    torch.testing.assert_close(steps[-1].target_velocity, steps[-1].velocity, check_device=False)
