"""Students that read source pictures themselves, as programs do that load one branch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyperbagel.bagel.adapters import FILE
from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE, conditions_of
from hyperbagel.bagel.branch_checkpoint import load_branch, read_info
from hyperbagel.flow.guidance import PAPER_EDITING
from hyperbagel.flow.sampler import Sampler
from hyperbagel.modules.consistency.cfg_distillation import CFGDistillation
from hyperbagel.modules.consistency.tscd import TSCD, TSCDMethod
from hyperbagel.modules.dmdo import DMDO, DMDOMethod
from hyperbagel.modules.teacher_tuning import TeacherTuning
from hyperbagel.pipeline.exports import merge
from hyperbagel.rewards.bagel import BagelReward
from hyperbagel.training.distillation import DistillationSettings
from hyperbagel.training.episode import context_of, read
from hyperbagel.training.networks import LoRA
from tests.distillation import adam, changed, documents, fit, sgd, snapshot
from tests.nano import nano_bagel

SETTINGS = DistillationSettings(context="student")
SIZES = [(16, 16), (16, 16)]


@torch.no_grad()
def test_the_sampler_says_which_branch_reads() -> None:
    """With the scales that it denoises at; texts are read by none."""
    model = nano_bagel()
    branch = nano_bagel(seed=3).generation
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    torch.nn.init.normal_(branch.get_parameter("image_scale_embedder.mlp.2.weight"))
    sampler = Sampler(1, 3.0, PAPER_EDITING)
    for editing in (True, False):
        contexts = [context_of(document) for document in documents(0, editing, SIZES).documents]
        original, student = (replace(sampler, context=c).read(model, contexts, branch) for c in ("original", "student"))
        assert torch.equal(original.full.past.keys, student.full.past.keys) != editing
        torch.testing.assert_close(original.full.past.keys, model.prefill(contexts).past.keys)
        scales = {TEXT_SCALE: torch.full((2,), 4.0), IMAGE_SCALE: torch.full((2,), 2.0 * editing)}
        expected = model.prefill(contexts, None, branch, conditions_of(branch, scales, torch.zeros(2)))
        torch.testing.assert_close(student.full.past.keys, expected.past.keys)


def test_gradients_go_through_the_students_reading_alone(nano_folder: str) -> None:
    stage = CFGDistillation(model=nano_folder, settings=SETTINGS)
    episode = stage.begin(documents(0, True, SIZES))
    t = torch.full((2,), 0.5)
    velocity = episode.velocity(stage.student)
    with torch.no_grad():
        first, teacher = velocity(episode.noise, t), stage.teacher.over(episode).velocity(episode.noise, t)
    own = read(
        stage.model, episode.batch.documents, variants=False, branch=stage.student,
        conditions={name: episode.conditions[name] for name in stage.student.conditions},
    )  # fmt: skip
    expected = stage.model.velocity(episode.noise, t, own.full, episode.grid, stage.student, episode.conditions)
    torch.testing.assert_close(first, expected)
    velocity(episode.noise, t).sum().backward()
    through = stage.student.get_parameter("layers.0.input.k_proj.weight").grad
    stage.zero_grad()
    stage.settings = DistillationSettings()
    plain = stage.begin(documents(0, True, SIZES))
    plain = replace(plain, noise=episode.noise, conditions=episode.conditions)
    plain.velocity(stage.student)(episode.noise, t).sum().backward()
    assert not torch.allclose(through, stage.student.get_parameter("layers.0.input.k_proj.weight").grad)
    torch.testing.assert_close(stage.teacher.over(plain).velocity(episode.noise, t), teacher)


@pytest.mark.parametrize(
    "stage",
    [
        lambda folder: TSCD(model=folder, student=adam(), method=TSCDMethod(mse_weight=1.0), settings=SETTINGS),
        lambda folder: DMDO(
            model=folder, student=adam(), method=DMDOMethod(fake_updates=1, through="trajectory"), settings=SETTINGS
        ),
    ],
    ids=["tscd", "dmdo"],
)
def test_stages_train_what_reads(stage, nano_folder: str, tmp_path: Path) -> None:
    module = stage(nano_folder)
    before = snapshot(module.student)
    fit(module, [documents(i, bool(i % 2), SIZES) for i in range(2)], tmp_path)
    assert changed(before, module.student)
    assert module.editing_sampler.context == "student"
    assert read_info(tmp_path / "branch.safetensors").reader == "student"


def test_a_teacher_reads_itself(nano_folder: str) -> None:
    with pytest.raises(ValueError, match="leave it out"):
        TeacherTuning(model=nano_folder, reward=BagelReward(), settings=SETTINGS)


def test_a_stage_starts_from_an_exported_folder(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merge(Path(nano_folder), nano_branch, {TEXT_SCALE: 4.0, IMAGE_SCALE: 0.0}, out)
    stage = CFGDistillation(model=nano_folder, init_from=str(out))
    episode, t = stage.begin(documents(0, False, SIZES)), torch.full((2,), 0.7)
    branch = load_branch(nano_branch, stage.model)[0]
    scales = {TEXT_SCALE: torch.full((2,), 4.0), IMAGE_SCALE: torch.zeros(2)}
    context = episode.contexts.full
    expected = stage.model.velocity(episode.noise, t, context, episode.grid, branch, scales)
    torch.testing.assert_close(episode.velocity(stage.student)(episode.noise, t), expected, atol=1e-5, rtol=1e-4)
    other = tmp_path / "other"
    nano_bagel(seed=7).save_pretrained(other)
    with pytest.raises(ValueError, match="has another understanding stack"):
        CFGDistillation(model=nano_folder, init_from=str(other))


def test_adapters_are_exported_as_they_are(nano_folder: str, tmp_path: Path) -> None:
    """A run's adapters give what its student does, and a later stage starts from them."""
    pytest.importorskip("peft")
    student = sgd(0.05, lora=LoRA(rank=2, alpha=4, merge=False))
    stage = CFGDistillation(model=nano_folder, student=student)
    fit(stage, [documents(0, False, SIZES)] * 2, tmp_path)
    assert (tmp_path / "branch" / FILE).is_file() and not (tmp_path / "branch.safetensors").exists()
    episode, t = stage.begin(documents(0, False, SIZES)), torch.full((2,), 0.7)
    expected = episode.velocity(stage.student)(episode.noise, t)
    later = CFGDistillation(model=nano_folder, init_from=str(tmp_path / "branch"))
    torch.testing.assert_close(episode.velocity(later.student)(episode.noise, t), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="leave init_from out"):
        CFGDistillation(model=nano_folder, init_from=str(tmp_path / "branch"), student=student)
