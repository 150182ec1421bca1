"""Reward tuning of a model's own generation weights: guided as the model is, and written with it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from hyperbagel.bagel.model import Bagel
from hyperbagel.callbacks import ExportModel
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION, Guidance, GuidedPass
from hyperbagel.flow.sampler import Sampler
from hyperbagel.flow.trajectory import trajectory
from hyperbagel.modules.reward_tuning import RewardTuningMethod
from hyperbagel.modules.teacher_tuning import TeacherTuning
from hyperbagel.training.distillation import DistillationSettings
from hyperbagel.training.networks import LoRA, Training
from tests.distillation import adam, batches, changed, episode_of, fit, sgd, snapshot, steps_of

from .test_reward_tuning import STILL, Brightness

HELD = RewardTuningMethod(group=2, draws=1, lowest_time=0, editing=False)


def make(folder: str, train: Training, method: RewardTuningMethod = HELD, steps: int = 3) -> TeacherTuning:
    settings = DistillationSettings(steps=steps, text_scale=(4.0, 4.0), image_scale=(2.0, 2.0))
    return TeacherTuning(model=folder, reward=Brightness(), method=method, student=train, settings=settings)


def shift(module: torch.nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += by


def guided(model: Bagel, seed: int, x_t: Tensor, t: Tensor, guidance: Guidance, repeats: int) -> Tensor:
    """What a model says, in the sampler's own way, where it is guided at all times t."""
    episode = episode_of(model, batches(seed + 1)[seed].repeat(repeats), variants=True)
    with torch.no_grad():
        return GuidedPass.of(episode.contexts, episode.grid, guidance).velocity(model, x_t, t, guidance)


@pytest.mark.parametrize("guidance", [PAPER_GENERATION, PAPER_EDITING])
def test_pictures_are_drawn_as_the_sampler_does(guidance: Guidance, nano_folder: str) -> None:
    """By the moving average, which is the model's own generation side now."""
    stage = make(nano_folder, sgd(0.0))
    shift(stage.ema, 0.01)
    scales = torch.full((2,), guidance.text_scale), torch.full((2,), guidance.image_scale)
    episode = episode_of(stage.model, batches(2)[int(guidance.uses_image)], variants=True, scales=scales)
    with torch.no_grad():
        states = trajectory(stage.velocity(episode, stage.ema), episode.noise, stage.grid_t)
        sample = Sampler(3, 3.0, guidance).sample(stage.model, episode.contexts, episode.grid, episode.noise)
    torch.testing.assert_close(states, sample.trajectory)


def test_edits_are_held_to_the_whole_initial_model(nano_folder: str, tmp_path: Path) -> None:
    """Whose contexts were read by its own weights, while pictures are drawn over those of the moving average."""
    stage = make(nano_folder, sgd(0.0), replace(HELD, ema_decay=STILL))
    shift(stage.ema, 0.01)
    now, before = deepcopy(stage.model), Bagel.from_pretrained(nano_folder)
    steps = steps_of(stage, batches(2), tmp_path)
    for kind, (step, guidance) in enumerate(zip(steps, (PAPER_GENERATION, PAPER_EDITING), strict=True)):
        active = step.t > guidance.interval[0]
        old, initial = (guided(m, kind, step.x_t, step.t, guidance, repeats=2)[active] for m in (now, before))
        assert active.any() and step.target_velocity is not None and not torch.allclose(old, initial, atol=1e-3)
        if kind:
            torch.testing.assert_close(step.target_velocity[active], initial, atol=1e-4, rtol=1e-3)
        else:  # the lesson moves both pictures of a document alike
            moved = step.target_velocity - guided(now, kind, step.x_t, step.t, guidance, repeats=2)
            assert active.all() and moved.abs().max() > 1e-3
            torch.testing.assert_close(moved[:2], moved[2:], atol=1e-4, rtol=1e-3)


def test_only_generation_weights_train_and_the_model_is_written(nano_folder: str, tmp_path: Path) -> None:
    stage = make(nano_folder, adam(1e-2))
    understanding, reference = snapshot(stage.model.understanding), snapshot(stage.initial_branch())
    before, student = snapshot(stage.model.generation), snapshot(stage.student)
    fit(stage, batches(2), tmp_path, callbacks=[ExportModel(str(tmp_path / "tuned"))])
    assert changed(before, stage.model.generation) and changed(student, stage.student)
    assert not changed(understanding, stage.model.understanding)
    assert not changed(reference, stage.reference)
    written = Bagel.from_pretrained(tmp_path / "tuned")
    assert not written.generation.guided
    assert not changed(snapshot(stage.ema), written.generation) and not changed(understanding, written.understanding)


def test_resuming_equals_an_uninterrupted_run(nano_folder: str, tmp_path: Path) -> None:
    """Bit for bit, from a checkpoint that holds the generation weights twice: as they train, and averaged."""
    data = batches(4)
    whole = make(nano_folder, adam())
    fit(whole, data, tmp_path)
    saver = ModelCheckpoint(tmp_path, "half", save_last=False)
    fit(make(nano_folder, adam()), data[:2], tmp_path, callbacks=[saver], enable_checkpointing=True)
    kept = {key.partition(".")[0] for key in torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]}
    assert kept == {"student", "ema", "student_step", "batches_seen"}
    half = make(nano_folder, adam())
    fit(half, data[2:], tmp_path, ckpt_path=tmp_path / "half.ckpt", max_epochs=2)
    assert half.model.generation is half.ema and not changed(whole.state_dict(), half)


def test_adapters_are_written_as_plain_weights(nano_folder: str, tmp_path: Path) -> None:
    stage = make(nano_folder, adam(1e-2, lora=LoRA(rank=2, full=())))
    fit(stage, batches(1), tmp_path, callbacks=[ExportModel(str(tmp_path / "tuned"))])
    written = Bagel.from_pretrained(tmp_path / "tuned").generation
    initial = Bagel.from_pretrained(nano_folder).generation
    moved = {name for name, value in snapshot(written).items() if not torch.equal(value, snapshot(initial)[name])}
    assert moved and all("_proj.weight" in name for name in moved)


def test_a_distilled_teacher_is_refused(nano_folder: str, nano_branch: str) -> None:
    with pytest.raises(ValueError, match=r"settings\.teacher is .*RewardTuning"):
        TeacherTuning(model=nano_folder, reward=Brightness(), settings=DistillationSettings(teacher=nano_branch))
