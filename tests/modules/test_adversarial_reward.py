"""Stages 4 and 5: pairs, critics, and the reward's way to the branch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hyperbagel.losses.terms import MeanSquaredError
from hyperbagel.modules.reward_term import RewardTerm
from torch import Tensor

from hyperbagel.bagel.branch_checkpoint import load_branch
from hyperbagel.bagel.segments import DocumentBatch, TextSegment
from hyperbagel.critics.pixel import BagelViTFeatures
from hyperbagel.flow.noise import SharedNoise
from hyperbagel.flow.sampler import Sampler
from hyperbagel.flow.schedule import predict_x0
from hyperbagel.modules.adversarial_reward import ADP, ADPSettings, ReFL, noise_favouring_times
from hyperbagel.rewards.bagel import BagelReward
from hyperbagel.rewards.base import Reward
from hyperbagel.training.distillation import StageSettings
from hyperbagel.training.episode import prepare

from .distillation import HEADS, adam, batches, documents, fit, make_stage, sgd, steps_of


def test_times_favour_noise() -> None:
    t = noise_favouring_times(torch.linspace(0, 1, 1001))
    assert t[0] == 1 and t[-1] == 0
    assert float(t.median()) == pytest.approx(0.875)
    nearer = noise_favouring_times(torch.linspace(0, 1, 1001), 9.0)
    assert nearer[0] == 1 and nearer[-1] == 0
    assert float(nearer.median()) == pytest.approx(1 - 0.5**9)
    with pytest.raises(ValueError, match="time_power"):
        ADPSettings(time_power=0)


def test_pairs_are_the_six_step_models(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """x_t lies between the x_T and the x_0 of its own ODE, as the public sampler runs it."""
    stage = ADP(nano_folder, nano_branch, None, sgd(0.0), sgd(0.0), heads=HEADS)
    for step in steps_of(stage, 2, tmp_path):
        assert step.target is not None and step.scales is not None
        t = step.t[:, None, None]
        noise = (step.x_t - (1 - t) * step.target) / t
        prepared = prepare(stage.model, step.batch, variants=False)
        x_0 = stage.pairs(prepared, step.scales, noise)
        torch.testing.assert_close(x_0, step.target, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(step.output, step.x0_hat)


def test_pairs_of_shared_noise_come_from_another_branch(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """Prompt alone decides where nothing of the noise is a picture's own; the student still sees its own."""
    settings = ADPSettings(
        pairs_from=nano_branch, shared_noise=SharedNoise(0), pair_weight=1, latent_weight=0, time_power=math.inf
    )
    stage = ADP(nano_folder, None, None, adam(), adp=settings)
    maker = load_branch(nano_branch, stage.model)[0]
    for key, value in stage.pair_branch.state_dict().items():
        assert torch.equal(value, maker.state_dict()[key])
    assert any(not torch.equal(a, b) for a, b in zip(stage.student.parameters(), maker.parameters(), strict=False))
    (step,) = steps_of(stage, 1, tmp_path)
    assert step.target is not None and step.scales is not None
    assert bool((step.t == 1).all())
    prepared = prepare(stage.model, step.batch, variants=False)
    torch.testing.assert_close(stage.pairs(prepared, step.scales, torch.randn_like(step.x_t)), step.target)


def test_student_samples_in_one_step(nano_folder: str, nano_branch: str) -> None:
    stage = make_stage("adp", nano_folder, nano_branch)
    assert stage.sampler == Sampler(1, 3.0, stage.settings.generation)
    assert stage.editing_sampler.steps == 1
    prepared = prepare(stage.model, batches(1)[0], variants=True)
    noise = torch.randn(2, 4, stage.model.config.latent_token_dim)
    with torch.no_grad():
        sample = stage.sampler.sample(stage.model, prepared.contexts, prepared.grid, noise, stage.branch)
    assert sample.nfe == 1


@pytest.mark.parametrize("latent", [True, False])
def test_each_critic_can_be_left_out(latent: bool, nano_folder: str, tmp_path: Path) -> None:
    settings = ADPSettings(latent_weight=float(latent), pixel_weight=float(not latent))
    stage = ADP(nano_folder, None, BagelViTFeatures(), adam(), adam(), adam(), settings, HEADS)
    run = fit(stage, batches(1), tmp_path)
    assert stage.critic_names == (("critic",) if latent else ("pixel_critic",))
    assert ("loss/critic_latent" in run.logged_metrics) == latent
    assert ("loss/critic_pixel" in run.logged_metrics) != latent


@pytest.mark.parametrize("scale", [None, 0.5])
def test_pairs_alone_teach_without_a_critic(
    scale: float | None, nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    settings = ADPSettings(latent_weight=0, pixel_weight=0, pair_weight=1, pair_scale=scale)
    stage = ADP(nano_folder, nano_branch, BagelViTFeatures(), adam(), adp=settings)
    assert stage.critic_names == ()
    with pytest.raises(ValueError, match="no critic"):
        stage.add_loss(MeanSquaredError(update="critic"))
    run = fit(stage, batches(1), tmp_path)
    stage = ADP(nano_folder, nano_branch, None, adam(), adp=settings)
    (step,) = steps_of(stage, 1, tmp_path / "again")
    assert step.target is not None
    error = (step.output - step.target).square().mean(2)[step.grid.valid]
    expected = (error if scale is None else scale**2 * (1 + error / scale**2).log()).mean()
    torch.testing.assert_close(run.logged_metrics["loss/pairs"], expected.detach(), check_dtype=False)


def test_something_must_teach() -> None:
    with pytest.raises(ValueError, match="latent_weight, pixel_weight or pair_weight"):
        ADPSettings(latent_weight=0, pixel_weight=0)
    with pytest.raises(ValueError, match="pair_scale > 0, or null"):
        ADPSettings(pair_weight=1, pair_scale=0)
    with pytest.raises(ValueError, match="needs `features`"):
        ADP("not/even/looked/for", adp=ADPSettings(latent_weight=0))


def test_critics_train_between_the_students_turns(nano_folder: str, tmp_path: Path) -> None:
    stage = ADP(
        nano_folder,
        None,
        BagelViTFeatures(),
        adam(),
        adam(),
        adam(),
        ADPSettings(student_every=2, r1_weight=0.1),
        HEADS,
    )
    fit(stage, batches(4), tmp_path)
    assert stage.backward_passes.tolist() == [2, 4, 4, 0]


class Brightness(Reward):
    """A reward whose gradient is known."""

    prompts: list[str]

    def score(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        self.prompts = list(prompts)
        return torch.stack([image.mean() for image in images])


def test_echoes_are_updates_on_the_same_pairs_with_other_fine_noise(
    nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    """As many as `max_updates` leaves room for."""
    settings = ADPSettings(
        shared_noise=SharedNoise(1), echoes=3, pair_weight=1, latent_weight=0, pixel_weight=0, time_power=math.inf
    )
    stage = ADP(nano_folder, nano_branch, student=adam(), adp=settings, settings=StageSettings(max_updates=5))
    first, *others = steps_of(stage, 4, tmp_path)
    assert len(others) == 4 and int(stage.student_step) == 5
    assert all(step.target is first.target for step in others[:2]) and others[2].target is not first.target
    assert not torch.equal(first.x_t, others[0].x_t) and not torch.equal(others[0].x_t, others[1].x_t)
    for step in others[:2]:
        torch.testing.assert_close(step.x_t.mean(1), first.x_t.mean(1))
    with pytest.raises(ValueError, match="echoes >= 1"):
        ADPSettings(echoes=0)


@pytest.mark.parametrize("editing", [False, True])
def test_rewards_gradient_reaches_the_branch_through_autoencoder_and_vit(
    editing: bool, nano_folder: str, nano_branch: str
) -> None:
    """d loss / d branch along a random direction, against a difference quotient, everything in float64."""
    stage = ReFL(nano_folder, BagelReward(), nano_branch, threshold=5.0).double()
    (term,) = stage.loss_terms
    prepared = prepare(stage.model, as_double(documents(0, editing, [(16, 16), (16, 16)])), variants=False)
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4, stage.model.config.latent_token_dim, generator=g).double()
    scales = prepared.scales(torch.full((2,), 3.0).double(), torch.full((2,), 2.0).double())
    t = torch.ones(2, dtype=torch.float64)

    def loss() -> Tensor:
        v = stage.model.velocity(noise, t, prepared.contexts.full, prepared.grid, stage.student, scales)
        x0_hat = predict_x0(noise, v, t[:, None, None])
        value: Tensor = term(stage.step(prepared, scales, x_t=noise, t=t, velocity=v, output=x0_hat))
        return value

    loss().backward()
    trained = [p for p in stage.student.parameters() if p.grad is not None]
    directions = [torch.randn(p.shape, generator=g).double() for p in trained]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(trained, directions, strict=True))  # type: ignore[operator]
    values = []
    with torch.no_grad():
        for move in (1e-4, -2e-4):
            for p, d in zip(trained, directions, strict=True):
                p += move * d
            values.append(float(loss()))
    assert abs(slope) > 0.1
    assert (values[0] - values[1]) / 2e-4 == pytest.approx(slope, rel=0.02)


def as_double(batch: DocumentBatch) -> DocumentBatch:
    from dataclasses import replace

    def convert(segment):  # type: ignore[no-untyped-def]
        return replace(segment, pixels=segment.pixels.double()) if hasattr(segment, "pixels") else segment

    return replace(batch, documents=tuple([convert(s) for s in d] for d in batch.documents))


def test_prompts_are_the_last_texts_or_what_meta_says(nano_folder: str, tmp_path: Path) -> None:
    stage = ReFL(nano_folder, Brightness(), student=adam())
    (term,) = stage.loss_terms
    assert isinstance(term, RewardTerm)
    from hyperbagel.bagel.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_pretrained(nano_folder)
    batch = documents(0, True, [(16, 16)] * 2)
    row = list(batch.documents[0])
    row[2] = TextSegment(tokenizer.encode("make the circle red"))
    batch = DocumentBatch((row, batch.documents[1]), batch.keys, ({}, {"reward_prompt": "a red circle"}), "editing")
    assert term.prompts(batch) == [tokenizer.decode(tokenizer.encode("make the circle red")), "a red circle"]
    bare = DocumentBatch((documents(0, False, [(16, 16)]).documents[0][1:],), ("mute",), ({},), "x")
    with pytest.raises(ValueError, match="document mute of source 'x' has no text"):
        term.prompts(bare)


def test_reward_rises_until_the_threshold(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """Pictures get brighter, and beyond the threshold nothing moves."""
    stage = ReFL(nano_folder, Brightness(), nano_branch, threshold=10.0, student=adam(1e-2))
    run = fit(stage, batches(1) * 2, tmp_path)
    start = float(run.logged_metrics["reward/refl"])
    run = fit(stage, batches(1) * 30, tmp_path)
    assert float(run.logged_metrics["reward/refl"]) > start + 0.01
    stage = ReFL(nano_folder, Brightness(), nano_branch, threshold=-10.0, student=sgd(1.0))
    before = {n: p.detach().clone() for n, p in stage.student.named_parameters()}
    run = fit(stage, batches(2), tmp_path)
    assert run.logged_metrics["loss/refl"] == 0
    assert all(torch.equal(p, before[n]) for n, p in stage.student.named_parameters())


def test_reward_as_a_users_term_in_another_stage(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    stage = make_stage("adp", nano_folder, nano_branch)
    stage.add_loss(RewardTerm(BagelReward(), 1.0, weight=0.1))
    run = fit(stage, batches(2), tmp_path)
    assert {"loss/refl", "reward/refl", "loss/adversarial_latent"} <= run.logged_metrics.keys()
