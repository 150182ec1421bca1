"""What every stage keeps: only its networks change, checkpoints without the model, exact resuming, useful errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from hyperbagel.bagel.branch import DURATION, IMAGE_SCALE, TEXT_SCALE, GenerationBranch
from hyperbagel.bagel.branch_checkpoint import base_hash, context_hash, load_branch
from hyperbagel.bagel.model import Bagel
from hyperbagel.modules.consistency.cfg_distillation import CFGDistillation
from hyperbagel.training.networks import LoRA
from hyperbagel.training.stage import FINGERPRINT
from tests.distillation import adam, batches, changed, documents, episode_of, fit, snapshot
from tests.stages import DISTILLATION, STAGES, make_stage


@pytest.mark.parametrize("name", DISTILLATION)
def test_two_updates_change_the_networks_and_nothing_else(
    name: str, nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    """Generation and editing batches, images of different sizes; the model stays as it is bit for bit."""
    stage = make_stage(name, nano_folder, nano_branch, adam())
    model, networks = snapshot(stage.model), {n: snapshot(stage.get_submodule(n)) for n in STAGES[name].networks}
    run = fit(stage, batches(2, mixed_sizes=True), tmp_path)
    assert int(stage.student_step) == 2
    assert not changed(model, stage.model)
    assert all(changed(before, stage.get_submodule(n)) for n, before in networks.items())
    assert all(p.grad is None for p in stage.model.parameters())
    assert all(torch.isfinite(torch.as_tensor(v)) for v in run.logged_metrics.values())
    assert {"loss/", "grad_norm/", "time/"} <= {k.partition("/")[0] + "/" for k in run.logged_metrics}
    branch, info = load_branch(tmp_path / "branch.safetensors", stage.model)
    assert info.stage == type(stage).__name__ and info.nfe == stage.nfe
    assert (info.base, info.context) == (base_hash(stage.model), context_hash(stage.model))
    assert not changed(snapshot(stage.branch), branch)


@pytest.mark.parametrize("name", DISTILLATION)
def test_a_student_that_jumps_is_told_where_to(
    name: str, nano_folder: str, nano_branch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training as in sampling, where a duration of 0 would mean the velocity at t itself."""
    monkeypatch.setattr(STAGES[name].of, "conditions", (TEXT_SCALE, IMAGE_SCALE, DURATION))
    stage = make_stage(name, nano_folder, nano_branch, adam())
    told: list[Tensor] = []
    embed = GenerationBranch.embed

    def spy(branch: GenerationBranch, tokens: Tensor, t: Tensor, *others: Any) -> Tensor:
        if branch is stage.student:
            told.append(others[1][DURATION])
            assert (told[-1] <= t[:, 0]).all()
        return embed(branch, tokens, t, *others)

    monkeypatch.setattr(GenerationBranch, "embed", spy)
    fit(stage, batches(2), tmp_path)
    assert told
    jumps = [bool((durations > 0).all()) for durations in told]
    assert all(jumps) if name != "cfg_distillation" else not any(jumps)


@pytest.mark.parametrize("name", DISTILLATION)
def test_the_cost_of_an_update_is_logged_by_part(name: str, nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """The parts that follow each other make up the step, apart from what lies between them."""
    run = fit(make_stage(name, nano_folder, nano_branch, adam()), batches(2), tmp_path)
    seconds = {k.removeprefix("time/"): float(v) for k, v in run.logged_metrics.items() if k.startswith("time/")}
    row = STAGES[name]
    assert set(seconds) == {*row.timed, *row.inner, "data", "prefill", "step"}
    assert 0 < sum(seconds[part] for part in (*row.timed, "prefill")) <= seconds["step"] * 1.001


@pytest.mark.parametrize("name", DISTILLATION)
def test_resuming_equals_an_uninterrupted_run(name: str, nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """Bit for bit, from a checkpoint that holds no weight of the model."""
    data = batches(4)
    whole = make_stage(name, nano_folder, nano_branch, adam())
    fit(whole, data, tmp_path)
    saver = ModelCheckpoint(tmp_path, "half", save_last=False)
    fit(
        make_stage(name, nano_folder, nano_branch, adam()),
        data[:2],
        tmp_path,
        callbacks=[saver],
        enable_checkpointing=True,
    )
    checkpoint = torch.load(tmp_path / "half.ckpt", weights_only=True)
    kept = {key.partition(".")[0] for key in checkpoint["state_dict"]}
    assert kept == {*STAGES[name].networks, *STAGES[name].saved, "student_step", "batches_seen"}
    assert not any("encoder" in key or "reward" in key for key in checkpoint["state_dict"])
    half = make_stage(name, nano_folder, nano_branch, adam())
    fit(half, data[2:], tmp_path, ckpt_path=tmp_path / "half.ckpt", max_epochs=2)
    assert int(half.student_step) == 4
    assert not changed(whole.state_dict(), half)


def test_loading_still_finds_gaps_and_other_models(nano_folder: str, nano_branch: str) -> None:
    stage = make_stage("tscd", nano_folder, nano_branch, adam())
    state = stage.state_dict()
    stage.load_state_dict(state)
    del state["student.vae2llm.weight"]
    with pytest.raises(ValueError, match=r"student\.vae2llm\.weight"):
        stage.load_state_dict(state)
    checkpoint: dict[str, Any] = {}
    stage.on_save_checkpoint(checkpoint)
    stage.on_load_checkpoint(checkpoint)
    for wrong in ({}, checkpoint | {FINGERPRINT: "0" * 16}):
        with pytest.raises(ValueError, match="other frozen weights"):
            stage.on_load_checkpoint(wrong)


def test_documents_without_an_image_to_draw_are_named(nano_folder: str, tmp_path: Path) -> None:
    batch = documents(3, False, [(16, 16)])
    bare = type(batch)((batch.documents[0][:1],), ("lonely",), ({},), "captions")
    with pytest.raises(ValueError, match=r"'captions': lonely hold no image"):
        fit(CFGDistillation(model=nano_folder), [bare], tmp_path)


@pytest.mark.parametrize("name", DISTILLATION)
def test_low_rank_branches_train_and_export_as_plain_ones(
    name: str, nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    adapted = adam(lora=LoRA(rank=2, alpha=2))
    stage = make_stage(name, nano_folder, nano_branch, adapted)
    base = {n: p.detach().clone() for n, p in stage.student.named_parameters() if not p.requires_grad}
    fit(stage, batches(2), tmp_path)
    assert base and all(torch.equal(p, stage.student.get_parameter(n)) for n, p in base.items())
    saved = {key for key in stage.state_dict() if key.startswith("student.")}
    assert any("lora_B" in key for key in saved)
    assert not any("base_layer" in key for key in saved)
    branch, _ = load_branch(tmp_path / "branch.safetensors", stage.model)
    assert denoised(stage.model, branch).allclose(denoised(stage.model, stage.branch), atol=1e-5)
    start, _ = load_branch(nano_branch, stage.model)
    assert not denoised(stage.model, branch).allclose(denoised(stage.model, start), atol=1e-5)
    again = make_stage(name, nano_folder, nano_branch, adapted)
    again.load_state_dict(stage.state_dict())
    assert torch.equal(denoised(stage.model, stage.branch), denoised(again.model, again.branch))


def denoised(model: Bagel, branch: GenerationBranch) -> Tensor:
    """The velocity of a fixed input."""
    episode = episode_of(model, batches(1)[0], scales=(torch.full((2,), 3.0), torch.zeros(2)))
    with torch.no_grad():
        return episode.velocity(branch)(torch.ones_like(episode.noise), torch.full((2,), 0.5))
