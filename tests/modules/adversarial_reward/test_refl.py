"""Stage 5: the reward's way to the branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyperbagel.bagel.segments import DocumentBatch, TextSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.losses.reward import RewardTerm
from hyperbagel.modules.adversarial_reward.refl import ReFL, ReFLMethod
from hyperbagel.rewards.bagel import BagelReward
from hyperbagel.rewards.base import Reward
from hyperbagel.training.networks import Training
from tests.distillation import adam, batches, documents, episode_of, fit, sgd
from tests.stages import make_stage


class Brightness(Reward):
    """A reward whose gradient is known."""

    prompts: list[str]

    def score(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        self.prompts = list(prompts)
        return torch.stack([image.mean() for image in images])


@pytest.mark.parametrize("editing", [False, True])
def test_rewards_gradient_reaches_the_branch_through_autoencoder_and_vit(
    editing: bool, nano_folder: str, nano_branch: str
) -> None:
    """d loss / d branch along a random direction, against a difference quotient, everything in float64."""
    stage = ReFL(
        model=nano_folder, init_from=nano_branch, reward=BagelReward(), method=ReFLMethod(threshold=5.0)
    ).double()
    (term,) = stage.loss_terms
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4, stage.model.config.latent_token_dim, generator=g).double()
    scales = torch.full((2,), 3.0).double(), torch.full((2,), 2.0).double()
    batch = as_double(documents(0, editing, [(16, 16), (16, 16)]))
    episode = episode_of(stage.model, batch, scales=scales, noise=noise)
    t = torch.ones(2, dtype=torch.float64)

    def loss() -> Tensor:
        v = episode.velocity(stage.student)(noise, t)
        value: Tensor = term(episode.step(x_t=noise, t=t, velocity=v))
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
    def convert(segment):  # type: ignore[no-untyped-def]
        return replace(segment, pixels=segment.pixels.double()) if hasattr(segment, "pixels") else segment

    return replace(batch, documents=tuple([convert(s) for s in d] for d in batch.documents))


def test_prompts_are_the_last_texts_or_what_meta_says(nano_folder: str, tmp_path: Path) -> None:
    stage = ReFL(model=nano_folder, reward=Brightness(), student=adam())
    (term,) = stage.loss_terms
    assert isinstance(term, RewardTerm)
    tokenizer = Tokenizer.from_pretrained(nano_folder)
    batch = documents(0, True, [(16, 16)] * 2)
    row = list(batch.documents[0])
    row[2] = TextSegment(tokenizer.encode("make the circle red"))
    batch = DocumentBatch((row, batch.documents[1]), batch.keys, ({}, {"reward_prompt": "a red circle"}), "editing")
    assert term.prompts(batch) == [tokenizer.decode(tokenizer.encode("make the circle red")), "a red circle"]
    bare = DocumentBatch((documents(0, False, [(16, 16)]).documents[0][1:],), ("mute",), ({},), "x")
    with pytest.raises(ValueError, match="document mute of source 'x' has no text"):
        term.prompts(bare)


def bright(folder: str, branch: str, threshold: float, student: Training) -> ReFL:
    method = ReFLMethod(threshold=threshold)
    return ReFL(model=folder, init_from=branch, reward=Brightness(), method=method, student=student)


def test_reward_rises_until_the_threshold(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """Pictures get brighter, and beyond the threshold nothing moves."""
    stage = bright(nano_folder, nano_branch, 10.0, adam(1e-2))
    run = fit(stage, batches(1) * 2, tmp_path)
    start = float(run.logged_metrics["reward/refl"])
    run = fit(stage, batches(1) * 30, tmp_path)
    assert float(run.logged_metrics["reward/refl"]) > start + 0.01
    stage = bright(nano_folder, nano_branch, -10.0, sgd(1.0))
    before = {n: p.detach().clone() for n, p in stage.student.named_parameters()}
    run = fit(stage, batches(2), tmp_path)
    assert run.logged_metrics["loss/refl"] == 0
    assert all(torch.equal(p, before[n]) for n, p in stage.student.named_parameters())


def test_reward_as_a_users_term_in_another_stage(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    stage = make_stage("adp", nano_folder, nano_branch, adam())
    stage.add_loss(RewardTerm(BagelReward(), 1.0, weight=0.1))
    run = fit(stage, batches(2), tmp_path)
    assert {"loss/refl", "reward/refl", "loss/adversarial_latent"} <= run.logged_metrics.keys()
