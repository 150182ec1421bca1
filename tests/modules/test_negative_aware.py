"""NFT: who draws, who judges, and what the student learns of it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyperbagel.flow.schedule import interpolate, timesteps
from hyperbagel.modules.base import StageSettings
from hyperbagel.modules.batches import branch_velocity, prepare, trajectory
from hyperbagel.modules.negative_aware import NFT, NFTSettings
from hyperbagel.modules.randomness import step_generator
from hyperbagel.rewards.base import Reward

from .distillation import adam, batches, fit, sgd, steps_of


class Brightness(Reward):
    """A reward that is easily checked, and has no gradient to give."""

    def score(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        assert len(images) == len(prompts) and not any(image.requires_grad for image in images)
        return torch.stack([image.mean() for image in images])


def test_pictures_are_the_moving_averages_and_are_noised_anew(
    nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    """Two looks at two pictures of each of two documents, at times of the sampler. Low ones hold no lesson, and there
    the student is held at the initial branch."""
    nft = NFTSettings(group=2, draws=2, lowest_time=0.7)
    stage = NFT(nano_folder, Brightness(), nano_branch, nft, sgd(0.0))
    with torch.no_grad():
        for parameter in stage.ema.parameters():
            parameter += 0.01
        for parameter in stage.student.parameters():
            parameter -= 0.01
    ema = deepcopy(stage.ema)
    steps = steps_of(stage, 1, tmp_path)
    assert len(steps) == 2
    grid = timesteps(6, 3.0)
    pictures = []
    for step in steps:
        assert step.lesson is not None and len(step.batch) == 4 and step.batch.keys[:2] == step.batch.keys[2:]
        t = step.t[:, None, None]
        assert all(time in grid for time in step.t)
        x_0 = step.x_t - t * step.lesson.target
        torch.testing.assert_close(interpolate(x_0, x_0 + step.lesson.target, t), step.x_t)
        pictures.append(x_0)
        old, initial = (
            stage.model.velocity(step.x_t, step.t, step.contexts.full, step.grid, branch, step.scales)
            for branch in (ema, stage.initial_branch())
        )
        low = step.t < 0.7
        assert low.any() and step.target is not None
        assert step.lesson.advantage[low].eq(0).all()
        torch.testing.assert_close(step.lesson.behaviour, old)
        torch.testing.assert_close(step.target[low], initial[low])
        assert torch.equal(step.target[~low], step.velocity[~low]) and not step.target.requires_grad
    torch.testing.assert_close(pictures[0], pictures[1], atol=1e-5, rtol=1e-4)
    # The noise that they came from is the first draw of the step.
    prepared = prepare(stage.model, batches(1)[0].repeat(2), variants=False)
    noise = stage.draw_noise(prepared, step_generator(0, 0, 0))
    assert steps[0].scales is not None
    drawn = trajectory(branch_velocity(stage.model, prepared, ema, steps[0].scales), noise, grid)[-1]
    torch.testing.assert_close(pictures[0], drawn, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("editing", [True, False])
def test_edits_are_judged_only_if_wanted(editing: bool, nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    nft = NFTSettings(group=3, draws=1, lowest_time=0, editing=editing)
    steps = steps_of(NFT(nano_folder, Brightness(), nano_branch, nft, sgd(0.0)), 2, tmp_path)
    judged = [bool(step.lesson is not None and step.lesson.advantage.any()) for step in steps]
    assert [step.target is not None and torch.equal(step.target, step.velocity) for step in steps] == judged
    assert [step.batch.source for step in steps] == ["generation", "editing"]
    assert judged == [True, editing]


def test_pictures_get_better(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """Without a gradient of the reward; where nothing is judged, the student stays as it is."""
    rise = []
    for kind in (0, 1):
        nft = NFTSettings(group=8, lowest_time=0, editing=False, beta=0.2, ema_decay=0.5)
        stage = NFT(nano_folder, Brightness(), nano_branch, nft, adam(1e-2), StageSettings(steps=2))
        rewards: list[float] = []
        original = stage.log_at_step

        def spy(metrics, size=1, rewards=rewards, call=original):  # type: ignore[no-untyped-def]
            rewards += [float(metrics["reward"])] if "reward" in metrics else []
            call(metrics, size)

        stage.log_at_step = spy  # type: ignore[method-assign]
        fit(stage, batches(2)[kind:][:1] * 40, tmp_path)
        rise.append(sum(rewards[-5:]) / 5 - sum(rewards[:5]) / 5)
    assert rise[0] > 0.01 and rise[0] > 3 * abs(rise[1])


def test_settings_that_cannot_work_are_refused(nano_folder: str) -> None:
    with pytest.raises(ValueError, match=r"settings\.steps is 1"):
        NFT(nano_folder, Brightness(), settings=StageSettings(steps=1))
    for wrong in ({"group": 1}, {"draws": 0}, {"beta": 0.0}, {"lowest_time": 1.5}, {"ema_decay": 1.0}):
        with pytest.raises(ValueError, match="need "):
            NFTSettings(**wrong)  # type: ignore[arg-type]


def test_starts_from_the_original_branch_too(nano_folder: str, tmp_path: Path) -> None:
    """Which takes no scales, and is held to all the same."""
    steps = steps_of(NFT(nano_folder, Brightness(), None, NFTSettings(group=2), sgd(0.0)), 1, tmp_path)
    # Fresh guidance embedders add nothing yet.
    torch.testing.assert_close(steps[0].target, steps[0].velocity, check_device=False)
