"""Stage 4: pairs, and critics that judge them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyperbagel.bagel.branch_checkpoint import load_branch
from hyperbagel.critics.pixel import BagelViTFeatures
from hyperbagel.flow.noise import SharedNoise
from hyperbagel.flow.sampler import Sampler
from hyperbagel.flow.schedule import predict_x0
from hyperbagel.losses.regression import Regression
from hyperbagel.modules.adversarial_reward.adp import ADP, ADPMethod
from hyperbagel.training.distillation import DistillationSettings
from tests.distillation import adam, batches, episode_of, fit, sgd, steps_of, updates
from tests.stages import HEADS, make_stage


def test_pairs_are_the_six_step_models(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """x_t lies between the x_T and the x_0 of its own ODE, as the public sampler runs it."""
    method = ADPMethod(heads=HEADS)
    stage = ADP(model=nano_folder, init_from=nano_branch, method=method, student=sgd(0.0), critic=sgd(0.0))
    for step in steps_of(stage, batches(2), tmp_path):
        assert step.target_x0 is not None
        t = step.t[:, None, None]
        noise = (step.x_t - (1 - t) * step.target_x0) / t
        episode = replace(episode_of(stage.model, step.batch, noise=noise), conditions=step.conditions)
        torch.testing.assert_close(stage.pairs(episode), step.target_x0, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(step.x0_hat, predict_x0(step.x_t, step.velocity, t))


def test_pairs_of_shared_noise_come_from_another_branch(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """Prompt alone decides where nothing of the noise is a picture's own; the student still sees its own."""
    method = ADPMethod(
        pairs_from=nano_branch, shared_noise=SharedNoise(0), pair_weight=1, latent_weight=0, time_power=math.inf
    )
    stage = ADP(model=nano_folder, method=method, student=adam())
    maker = load_branch(nano_branch, stage.model)[0]
    for key, value in stage.pair_branch.state_dict().items():
        assert torch.equal(value, maker.state_dict()[key])
    assert any(not torch.equal(a, b) for a, b in zip(stage.student.parameters(), maker.parameters(), strict=False))
    (step,) = steps_of(stage, batches(1), tmp_path)
    assert bool((step.t == 1).all())
    episode = episode_of(stage.model, step.batch, noise=torch.randn_like(step.x_t))
    torch.testing.assert_close(stage.pairs(replace(episode, conditions=step.conditions)), step.target_x0)


def test_student_samples_in_one_step(nano_folder: str, nano_branch: str) -> None:
    stage = make_stage("adp", nano_folder, nano_branch, adam())
    assert stage.sampler == Sampler(1, 3.0, stage.settings.generation)
    assert stage.editing_sampler.steps == 1
    episode = episode_of(stage.model, batches(1)[0], variants=True)
    with torch.no_grad():
        sample = stage.sampler.sample(stage.model, episode.contexts, episode.grid, episode.noise, stage.branch)
    assert sample.nfe == 1


@pytest.mark.parametrize("latent", [True, False])
def test_each_critic_can_be_left_out(latent: bool, nano_folder: str, tmp_path: Path) -> None:
    method = ADPMethod(latent_weight=float(latent), pixel_weight=float(not latent), heads=HEADS)
    stage = ADP(model=nano_folder, features=BagelViTFeatures(), method=method)
    run = fit(stage, batches(1), tmp_path)
    assert stage.critic_names == (("critic",) if latent else ("pixel_critic",))
    assert ("loss/critic_latent" in run.logged_metrics) == latent
    assert ("loss/critic_pixel" in run.logged_metrics) != latent


@pytest.mark.parametrize("scale", [None, 0.5])
def test_pairs_alone_teach_without_a_critic(
    scale: float | None, nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    method = ADPMethod(latent_weight=0, pixel_weight=0, pair_weight=1, pair_scale=scale)
    stage = ADP(model=nano_folder, init_from=nano_branch, features=BagelViTFeatures(), method=method, student=adam())
    assert stage.critic_names == ()
    with pytest.raises(ValueError, match="no critic"):
        stage.add_loss(Regression(update="critic"))
    run = fit(stage, batches(1), tmp_path)
    stage = ADP(model=nano_folder, init_from=nano_branch, method=method, student=adam())
    (step,) = steps_of(stage, batches(1), tmp_path / "again")
    assert step.target_x0 is not None
    error = (step.x0_hat - step.target_x0).square().mean(2)[step.grid.valid]
    expected = (error if scale is None else scale**2 * (1 + error / scale**2).log()).mean()
    torch.testing.assert_close(run.logged_metrics["loss/pairs"], expected.detach(), check_dtype=False)


def test_something_must_teach() -> None:
    with pytest.raises(ValueError, match="time_power"):
        ADPMethod(time_power=0)
    with pytest.raises(ValueError, match="latent_weight, pixel_weight or pair_weight"):
        ADPMethod(latent_weight=0, pixel_weight=0)
    with pytest.raises(ValueError, match="pair_scale > 0, or null"):
        ADPMethod(pair_weight=1, pair_scale=0)
    with pytest.raises(ValueError, match="needs `features`"):
        ADP(model="not/even/looked/for", method=ADPMethod(latent_weight=0))


def test_critics_train_between_the_students_turns(nano_folder: str, tmp_path: Path) -> None:
    method = ADPMethod(student_every=2, r1_weight=0.1, heads=HEADS)
    train = adam()
    stage = ADP(
        model=nano_folder, features=BagelViTFeatures(), method=method, student=train, critic=train, pixel_critic=train
    )
    assert updates(fit(stage, batches(4), tmp_path)) == [2, 4, 4]


def test_echoes_are_updates_on_the_same_pairs_with_other_fine_noise(
    nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    """As many as `max_updates` leaves room for."""
    method = ADPMethod(
        shared_noise=SharedNoise(1),
        updates_per_batch=3,
        pair_weight=1,
        latent_weight=0,
        pixel_weight=0,
        time_power=math.inf,
    )
    settings = DistillationSettings(max_updates=5)
    stage = ADP(model=nano_folder, init_from=nano_branch, method=method, student=adam(), settings=settings)
    first, *others = steps_of(stage, batches(4), tmp_path)
    assert len(others) == 4 and int(stage.student_step) == 5
    assert all(step.target_x0 is first.target_x0 for step in others[:2]) and others[2].target_x0 is not first.target_x0
    assert not torch.equal(first.x_t, others[0].x_t) and not torch.equal(others[0].x_t, others[1].x_t)
    for step in others[:2]:
        torch.testing.assert_close(step.x_t.mean(1), first.x_t.mean(1))
    with pytest.raises(ValueError, match="updates_per_batch >= 1"):
        ADPMethod(updates_per_batch=0)
