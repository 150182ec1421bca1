"""A regression on pairs beside distribution matching."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hyperbagel.modules.pair_term import PairRegression

from hyperbagel.bagel.branch_checkpoint import load_branch
from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.flow.guidance import Guidance
from hyperbagel.flow.noise import SharedNoise
from hyperbagel.flow.sampler import Sampler
from hyperbagel.modules.dmdo import DMDO, DMDOSettings
from hyperbagel.training.distillation import StageSettings
from hyperbagel.training.episode import prepare

from .distillation import Batches, adam, batches, changed, fit, sgd, snapshot, steps_of, trainer

ONE = StageSettings(steps=1, text_scale=(3.0, 3.0), image_scale=(2.0, 2.0))


def stage_with(term: PairRegression, folder: str, settings: StageSettings = ONE) -> DMDO:
    stage = DMDO(folder, None, adam(), adam(), DMDOSettings(fake_updates=1), settings)
    stage.add_loss(term)
    return stage


def test_pairs_are_what_the_public_sampler_makes(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    term = PairRegression(nano_branch, 3, SharedNoise(1, seed=3), weight=0.5)
    stage = stage_with(term, nano_folder)
    (step,) = steps_of(stage, 1, tmp_path)
    branch, info = load_branch(nano_branch, stage.model)
    prepared = prepare(stage.model, step.batch, variants=True)
    sampler = Sampler(3, info.shift, Guidance(text_scale=3.0, image_scale=2.0))
    noise = SharedNoise(1, seed=3)(step.x_t, step.grid.sizes)
    with torch.no_grad():
        made = sampler.sample(stage.model, prepared.contexts, prepared.grid, noise, branch).latents
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
    stage = stage_with(PairRegression(nano_branch), nano_folder, StageSettings(steps=2, seed=1))
    with pytest.raises(ValueError, match="steps: 1"):
        fit(stage, batches(4), tmp_path)


def test_sources_part_what_is_matched_from_what_is_held(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """Distribution matching on edits alone; on pictures the student is held at what a frozen branch draws."""
    settings = DMDOSettings(fake_updates=2, sources=("editing",))
    stage = DMDO(nano_folder, nano_branch, sgd(0.1), sgd(0.1), settings, ONE)
    stage.add_loss(PairRegression(nano_branch, 1, name="held", sources=["generation"]))
    drawing, edit = batches(2)
    fake = snapshot(stage.fake)
    run = fit(stage, [drawing], tmp_path)
    assert run.logged_metrics["loss/held"] < 1e-10 and not {"loss/dmd", "loss/fake"} & set(run.logged_metrics)
    assert not changed(fake, stage.fake)
    run = fit(stage, [edit], tmp_path)
    assert {"loss/dmd", "loss/fake"} <= set(run.logged_metrics) and "loss/held" not in run.logged_metrics
    assert changed(fake, stage.fake)


def test_documents_that_no_loss_concerns_are_refused(nano_folder: str, tmp_path: Path) -> None:
    stage = DMDO(nano_folder, None, adam(), adam(), DMDOSettings(sources=("editing",)), ONE)
    with pytest.raises(ValueError, match=r"no loss of the student concerns documents of source 'generation'.*AddLoss"):
        fit(stage, batches(1), tmp_path)


def test_sources_that_the_data_lacks_are_refused(nano_folder: str, tmp_path: Path) -> None:
    stage = DMDO(nano_folder, None, adam(), adam(), DMDOSettings(sources=("edits",)), ONE)
    with pytest.raises(ValueError, match=r"'dmd': no source of `data.train` is named edits; choose .* of editing"):
        trainer(tmp_path).fit(stage, datamodule=Batches(batches(2), "editing"))


def test_a_scale_must_be_positive() -> None:
    with pytest.raises(ValueError, match="scale > 0, or null"):
        PairRegression("never/read", scale=0.0)


def test_a_missing_branch_is_named_before_training(nano_folder: str) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        stage_with(PairRegression("nothing.safetensors"), nano_folder)
