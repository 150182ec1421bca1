"""A regression on pairs beside distribution matching, and which pairs are regressed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hyperbagel.bagel.branch_checkpoint import load_branch
from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.flow.guidance import Guidance
from hyperbagel.flow.noise import SharedNoise
from hyperbagel.flow.sampler import Sampler
from hyperbagel.losses.pairs import PairFilter, PairFilters, PairRegression
from hyperbagel.losses.regression import cauchy_error
from hyperbagel.modules.adversarial_reward.adp import ADP, ADPMethod
from hyperbagel.modules.dmdo import DMDO, DMDOMethod
from hyperbagel.rewards.base import Reward
from hyperbagel.training.distillation import DistillationSettings
from tests.distillation import (
    Batches,
    adam,
    batches,
    changed,
    documents,
    episode_of,
    fit,
    record,
    sgd,
    snapshot,
    steps_of,
    trainer,
)

ONE = DistillationSettings(steps=1, text_scale=(3.0, 3.0), image_scale=(2.0, 2.0))


def dmdo(folder: str, method: DMDOMethod, settings: DistillationSettings = ONE) -> DMDO:
    return DMDO(model=folder, method=method, student=adam(), fake=adam(), settings=settings)


def stage_with(term: PairRegression, folder: str, settings: DistillationSettings = ONE) -> DMDO:
    stage = dmdo(folder, DMDOMethod(fake_updates=1), settings)
    stage.add_loss(term)
    return stage


def test_pairs_are_what_the_public_sampler_makes(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    term = PairRegression(nano_branch, 3, SharedNoise(1, seed=3), weight=0.5)
    stage = stage_with(term, nano_folder)
    (step,) = steps_of(stage, batches(1), tmp_path)
    branch, info = load_branch(nano_branch, stage.model)
    episode = episode_of(stage.model, step.batch, variants=True)
    sampler = Sampler(3, info.shift, Guidance(text_scale=3.0, image_scale=2.0))
    noise = SharedNoise(1, seed=3)(step.x_t, step.grid.sizes)
    with torch.no_grad():
        made = sampler.sample(stage.model, episode.contexts, episode.grid, noise, branch).latents
    torch.testing.assert_close(term.pairs(step), made, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(term(step), (step.x0_hat - made).square().mean(), atol=1e-4, rtol=1e-4)
    term.scale = 0.5
    errors = (step.x0_hat - made).square().mean(2)
    torch.testing.assert_close(term(step), 0.25 * (1 + 4 * errors).log().mean(), atol=1e-4, rtol=1e-4)


def test_the_branch_stays_and_is_left_out_of_checkpoints(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    term = PairRegression(nano_branch)
    stage = stage_with(term, nano_folder)
    assert term.branch is not None
    teacher, student = snapshot(term.branch), snapshot(stage.student)
    run = fit(stage, batches(2), tmp_path, enable_checkpointing=True)
    assert run.logged_metrics["loss/pairs"] > 0
    assert not changed(teacher, term.branch)
    assert changed(student, stage.student)
    assert not [key for key in stage.state_dict() if "pairs" in key or "terms" in key]


def test_students_of_several_steps_are_refused(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    stage = stage_with(PairRegression(nano_branch), nano_folder, DistillationSettings(steps=2, seed=1))
    with pytest.raises(ValueError, match="steps: 1"):
        fit(stage, batches(4), tmp_path)


def test_sources_part_what_is_matched_from_what_is_held(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """Distribution matching on edits alone; on pictures the student is held at what a frozen branch draws."""
    method, train = DMDOMethod(fake_updates=2, sources=("editing",)), sgd(0.1)
    stage = DMDO(model=nano_folder, init_from=nano_branch, method=method, student=train, fake=train, settings=ONE)
    stage.add_loss(PairRegression(nano_branch, 1, name="held", sources=["generation"]))
    drawing, edit = batches(2)
    fake = snapshot(stage.fake)
    run = fit(stage, [drawing], tmp_path)
    assert run.logged_metrics["loss/held"] < 1e-10 and not {"loss/dmd", "loss/fake"} & set(run.logged_metrics)
    assert not changed(fake, stage.fake)
    run = fit(stage, [edit], tmp_path)
    assert {"loss/dmd", "loss/fake"} <= set(run.logged_metrics) and "loss/held" not in run.logged_metrics
    assert changed(fake, stage.fake)


def test_documents_that_no_loss_applies_to_are_refused(nano_folder: str, tmp_path: Path) -> None:
    stage = dmdo(nano_folder, DMDOMethod(sources=("editing",)))
    with pytest.raises(
        ValueError, match=r"no loss of the student applies to documents of source 'generation'.*AddLoss"
    ):
        fit(stage, batches(1), tmp_path)


def test_sources_that_the_data_lacks_are_refused(nano_folder: str, tmp_path: Path) -> None:
    stage = dmdo(nano_folder, DMDOMethod(sources=("edits",)))
    with pytest.raises(ValueError, match=r"'dmd': no source of `data.train` is named edits; choose .* of editing"):
        trainer(tmp_path).fit(stage, datamodule=Batches(batches(2), "editing"))


def test_a_scale_must_be_positive() -> None:
    with pytest.raises(ValueError, match="scale > 0, or null"):
        PairRegression("never/read", scale=0.0)


def test_a_missing_branch_is_named_before_training(nano_folder: str) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        stage_with(PairRegression("nothing.safetensors"), nano_folder)


PAIRS_ALONE = ADPMethod(pair_weight=1, latent_weight=0, pixel_weight=0)


class Asked(Reward):
    """The number that the prompt is. It has a weight, which must stay out of checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def score(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        assert all(image.shape[0] == 3 for image in images)
        return self.scale * torch.tensor([float(prompt) for prompt in prompts])


def batch_of(*rewards: float, source: str = "generation") -> DocumentBatch:
    batch = documents(0, False, [(16, 16)] * len(rewards))
    return replace(batch, metas=tuple({"reward_prompt": str(r), "worth": str(-r)} for r in rewards), source=source)


def attached(model: Bagel, folder: str, *filters: PairFilter) -> PairFilters:
    result = PairFilters(filters)
    result.attach(model, folder)
    return result


def test_keeps_what_every_filter_finds_good_enough(nano_folder: str) -> None:
    model = Bagel.from_pretrained(nano_folder)
    batch, grid = batch_of(1, 2, 3), model.latent_grid([(16, 16)] * 3)
    x_0 = torch.zeros(3, 4, model.config.latent_token_dim)
    low, high = PairFilter(Asked(), 2.0), PairFilter(Asked(), -2.0, prompt_key="worth")
    assert attached(model, nano_folder)(x_0, grid, batch) is None
    assert attached(model, nano_folder, low)(x_0, grid, batch).tolist() == [False, True, True]
    assert attached(model, nano_folder, low, high)(x_0, grid, batch).tolist() == [False, True, False]


def test_other_sources_are_not_judged(nano_folder: str) -> None:
    model = Bagel.from_pretrained(nano_folder)
    judge = attached(model, nano_folder, PairFilter(Asked(), 9.0, sources=["generation"]))
    x_0, grid = torch.zeros(2, 4, model.config.latent_token_dim), model.latent_grid([(16, 16)] * 2)
    assert judge(x_0, grid, batch_of(1, 2)).tolist() == [False, False]
    assert judge(x_0, grid, batch_of(1, 2, source="editing")).tolist() == [True, True]


def test_a_missing_caption_is_not_replaced_by_another_text(nano_folder: str) -> None:
    model = Bagel.from_pretrained(nano_folder)
    judge = attached(model, nano_folder, PairFilter(Asked(), 0.0, prompt_key="caption"))
    x_0, grid = torch.zeros(1, 4, model.config.latent_token_dim), model.latent_grid([(16, 16)])
    with pytest.raises(ValueError, match="document 0-0 of source 'generation' has no 'caption' in its meta"):
        judge(x_0, grid, batch_of(1))


def test_sources_of_filters_that_the_data_lacks_are_refused(nano_folder: str, tmp_path: Path) -> None:
    filters = [PairFilter(Asked(), 1.0, sources=["pictures"])]
    stage = ADP(model=nano_folder, method=PAIRS_ALONE, student=adam(), filters=filters)
    with pytest.raises(ValueError, match=r"PairFilter: no source of `data.train` is named pictures"):
        trainer(tmp_path).fit(stage, datamodule=Batches([batch_of(1)], "generation"))


@pytest.mark.parametrize("rewards", [(1, 5), (1, 1)])
def test_adp_regresses_on_kept_pairs_alone(
    rewards: tuple[float, float], nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    """Each kept pair counts as it does without filters; where none is kept, nothing moves."""
    filters = [PairFilter(Asked(), 2.0)]
    stage = ADP(model=nano_folder, init_from=nano_branch, method=PAIRS_ALONE, student=sgd(0.1), filters=filters)
    before = {name: p.detach().clone() for name, p in stage.student.named_parameters()}
    (term,) = stage.loss_terms
    (step,) = steps_of(stage, [batch_of(*rewards)], tmp_path)
    assert step.target_x0 is not None
    errors = (step.x0_hat - step.target_x0).square().mean((1, 2))
    torch.testing.assert_close(term(step), errors[1] / 2 if 5 in rewards else torch.zeros(()))
    moved = any(not torch.equal(p, before[name]) for name, p in stage.student.named_parameters())
    assert moved == (5 in rewards)
    assert not [key for key in stage.state_dict() if "filters" in key]


def test_a_term_beside_distribution_matching_does_so_too(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    term = PairRegression(nano_branch, 2, scale=0.5, filters=[PairFilter(Asked(), 2.0)])
    stage = stage_with(term, nano_folder, DistillationSettings(steps=1, text_scale=(3.0, 3.0)))
    steps = record(stage)
    run = fit(stage, [batch_of(1, 5)], tmp_path)
    assert run.logged_metrics["kept/pairs"] == 0.5
    assert not [key for key in stage.state_dict() if "reward" in key]
    (step,) = steps
    expected = cauchy_error(step.x0_hat[1:], term.pairs(step)[1:], 0.5) / 2
    torch.testing.assert_close(term(step), expected, atol=1e-5, rtol=1e-4)
