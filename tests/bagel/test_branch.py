"""Branches over one shared understanding stack."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from hyperbagel.bagel.branch import DURATION, IMAGE_SCALE, TEXT_SCALE, Conditions, GenerationBranch, conditions_of
from hyperbagel.bagel.branch_checkpoint import (
    BranchInfo,
    average_branches,
    base_hash,
    context_hash,
    load_branch,
    save_branch,
)
from hyperbagel.bagel.checkpoint import CheckpointError, generation_keys
from hyperbagel.bagel.model import Bagel

from .tiny import CONFIG, Maker, tiny_model

SCALES = {TEXT_SCALE: torch.tensor([4.0, 2.0]), IMAGE_SCALE: torch.tensor([1.5, 0.0])}


@pytest.fixture
def model() -> Bagel:
    return tiny_model()


def velocity(model: Bagel, branch: GenerationBranch | None = None, conditions: Conditions | None = None) -> Tensor:
    make = Maker()
    context = model.prefill([[make.latent(2, 2), make.vit(8, 8), make.text(3)], [make.text(5)]])
    grid = model.latent_grid([(16, 8), (16, 8)])
    return model.velocity(make.noise(2, 2, 16), torch.tensor([0.3, 0.9]), context, grid, branch, conditions)


def perturb(branch: nn.Module, scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def test_gradients_reach_only_the_chosen_branch(model: Bagel) -> None:
    """The context is on original weights without gradient; the frozen stack gets none, the student gets all."""
    student, fake = model.generation.copy(), model.generation.copy()
    student.add_condition(TEXT_SCALE, IMAGE_SCALE)
    perturb(student)
    model.requires_grad_(False)
    make = Maker()
    with torch.no_grad():
        context = model.prefill([[make.latent(2, 2), make.text(3)], [make.text(5)]])
    x_t = make.noise(2, 2, 16).requires_grad_()
    grid = model.latent_grid([(16, 8), (8, 16)])
    v = model.velocity(x_t, torch.tensor([0.3, 0.9]), context, grid, student, SCALES)
    v.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert x_t.grad is not None and bool(x_t.grad.any())
    assert all(p.grad is None for p in [*fake.parameters(), *model.parameters()])


def test_checkpointing_changes_neither_outputs_nor_gradients(model: Bagel) -> None:
    gradients = []
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        model.zero_grad()
        velocity(model).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.generation.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@torch.no_grad()
def test_several_branches_share_one_stack(model: Bagel) -> None:
    original = velocity(model)
    student, critic = model.generation.copy(), model.generation.copy()
    torch.testing.assert_close(velocity(model, student), original, rtol=0, atol=0)
    perturb(student)
    changed = velocity(model, student)
    assert not torch.allclose(changed, original, atol=1e-3)
    for branch, expected in ((None, original), (critic, original), (student, changed)):
        torch.testing.assert_close(velocity(model, branch), expected, rtol=0, atol=0)
    swapped = tiny_model()
    swapped.generation.load_state_dict(student.state_dict())
    # The original branch also makes the clean latents of the context; the second document has none.
    torch.testing.assert_close(velocity(swapped)[1], changed[1])


@torch.no_grad()
def test_guidance_embedders_start_silent_and_then_act(model: Bagel) -> None:
    original, branch = velocity(model), model.generation.copy()
    assert not branch.guided
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    assert branch.guided and not model.generation.guided
    torch.testing.assert_close(velocity(model, branch, SCALES), original, rtol=0, atol=0)
    perturb(branch)
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)  # changes nothing once they are there
    first = velocity(model, branch, SCALES)
    other_text = velocity(model, branch, SCALES | {TEXT_SCALE: torch.tensor([5.0, 2.0])})
    other_image = velocity(model, branch, SCALES | {IMAGE_SCALE: torch.tensor([1.8, 0.0])})
    for other in (other_text, other_image):
        assert not torch.allclose(other[0], first[0], atol=1e-4)
        torch.testing.assert_close(other[1], first[1])
    perturb(branch.embedder(IMAGE_SCALE), 1.0)
    torch.testing.assert_close(velocity(model, branch, SCALES)[1], first[1])  # no source image: it stays out


def test_scales_are_inputs_of_distilled_branches_only(model: Bagel) -> None:
    with pytest.raises(ValueError, match="conditions of this branch: none; given: image_scale, text_scale"):
        velocity(model, None, SCALES)
    branch = model.generation.copy()
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    with pytest.raises(ValueError, match=r"conditions of this branch: \w+_scale, \w+_scale; given: none"):
        velocity(model, branch)


@pytest.mark.parametrize("guided", [False, True])
@torch.no_grad()
def test_files_round_trip_in_official_names(model: Bagel, tmp_path: Path, guided: bool) -> None:
    branch, path = model.generation.copy(), tmp_path / "branch.safetensors"
    if guided:
        branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    perturb(branch)
    info = BranchInfo("tscd", 6, base_hash(model), 3.0, (1.0, 8.0) if guided else None, None)
    save_branch(branch, info, path)
    keys = load(path.read_bytes()).keys()
    own = {k for k in keys if "scale_embedder" in k}
    assert set(generation_keys(keys)) == keys - own and bool(own) == guided
    loaded, read = load_branch(path, model)
    assert read == info and loaded.guided == guided
    for name, value in branch.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    scales = SCALES if guided else None
    torch.testing.assert_close(velocity(model, loaded, scales), velocity(model, branch, scales), rtol=0, atol=0)


def test_branches_that_do_not_belong_are_refused(model: Bagel, tmp_path: Path) -> None:
    path = tmp_path / "branch.safetensors"
    info = BranchInfo("dmdo", 6, base_hash(model))
    save_branch(model.generation, info, path)
    other = tiny_model(seed=1)
    with pytest.raises(
        CheckpointError, match=rf"branch\.safetensors: made for another base model .*{base_hash(model)}"
    ):
        load_branch(path, other)
    with pytest.raises(CheckpointError, match=r"missing\.safetensors: no such file"):
        load_branch(tmp_path / "missing.safetensors", model)
    weights = load(path.read_bytes())
    plain = tmp_path / "plain.safetensors"
    save_file(weights, plain)
    with pytest.raises(CheckpointError, match=r"plain\.safetensors: not a generation branch"):
        load_branch(plain, model)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"branch\.safetensors: not a whole safetensors file"):
        load_branch(path, model)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "metadata"),
        ("[]", "metadata"),
        (json.dumps({"stage": "x"}), "metadata"),
        (None, "missing keys: llm2vae.bias"),
    ],
)
def test_broken_branch_files_are_refused(model: Bagel, tmp_path: Path, metadata: str | None, message: str) -> None:
    path = tmp_path / "branch.safetensors"
    save_branch(model.generation, BranchInfo("x", 1, base_hash(model)), path)
    weights = load(path.read_bytes())
    if metadata is None:
        metadata = json.dumps({"stage": "x", "nfe": 1, "base": base_hash(model)})
        del weights["llm2vae.bias"]
    save_file(weights, path, {"hyperbagel_branch": metadata})
    with pytest.raises(CheckpointError, match=rf"branch\.safetensors.*{message}"):
        load_branch(path, model)


def test_fingerprints_tell_models_apart(model: Bagel) -> None:
    assert base_hash(model) == base_hash(tiny_model()) != base_hash(tiny_model(seed=1))
    changed = tiny_model()
    perturb(changed.generation)
    assert base_hash(changed) == base_hash(model)
    assert changed.config == CONFIG


def changed(part: str) -> Bagel:
    """The tiny model with other weights in one part."""
    model = tiny_model()
    perturb(getattr(model, part), 0.5)
    return model


def test_contexts_are_told_apart_by_all_that_reads_them(model: Bagel, tmp_path: Path) -> None:
    """In every type, and also by parts that are not loaded."""
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        for without in ((), ("generation",), ("generation", "autoencoder")):
            loaded = Bagel.from_pretrained(tmp_path, dtype, without=without)
            assert context_hash(loaded) == context_hash(model)
    hashes = {context_hash(changed(part)) for part in ("understanding", "generation", "autoencoder")}
    assert len(hashes | {context_hash(model)}) == 4


@pytest.mark.parametrize("part", ["generation", "autoencoder"])
def test_branches_of_another_teacher_over_the_same_understanding_are_refused(
    model: Bagel, tmp_path: Path, part: str
) -> None:
    path, other = tmp_path / "branch.safetensors", tmp_path / "other"
    save_branch(model.generation, BranchInfo("dmdo", 6, base_hash(model), context=context_hash(model)), path)
    load_branch(path, model)
    changed(part).save_pretrained(other)
    for without in ((), ("generation",)):
        teacher = Bagel.from_pretrained(other, without=without)
        message = (
            rf"branch\.safetensors: made for another generation branch or autoencoder .*{context_hash(model)}, "
            rf"{other} has {context_hash(teacher)}"
        )
        with pytest.raises(CheckpointError, match=message):
            load_branch(path, teacher)


def test_older_files_are_told_once(model: Bagel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "old.safetensors"
    save_branch(model.generation, BranchInfo("dmdo", 6, base_hash(model)), path)
    for _ in range(2):
        load_branch(path, model)
    (record,) = caplog.records
    assert "old.safetensors: an older file" in record.getMessage()


def test_a_mean_knows_its_context_if_all_do(model: Bagel, tmp_path: Path) -> None:
    infos = [BranchInfo("dmdo", 6, base_hash(model), context=context) for context in ("a", "a", None, "b")]
    paths = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for info, path in zip(infos, paths, strict=True):
        save_branch(model.generation, info, path)
    out = tmp_path / "mean.safetensors"

    def context(*numbers: int) -> str | None:
        return average_branches({str(paths[number]): 1 for number in numbers}, out).context

    assert [context(0, 1), context(0, 2), context(2, 0), context(2)] == ["a", None, None, None]
    with pytest.raises(CheckpointError, match="does not average"):
        context(0, 3)


def test_average_of_branches(model: Bagel, tmp_path: Path) -> None:
    """Shares are relative; what differs in more than its weights, or is no share, is refused."""
    info = BranchInfo("DMDO", 1, base_hash(model), text_scale=(4.0, 4.0))
    branch = GenerationBranch(CONFIG)
    for seed, value in enumerate((1.0, 4.0)):
        for parameter in branch.parameters():
            nn.init.constant_(parameter, value)
        save_branch(branch, replace(info, stage=f"stage {seed}"), tmp_path / f"{seed}.safetensors")
    one, two, out = (tmp_path / f"{name}.safetensors" for name in (0, 1, "mean"))
    average_branches({str(one): 4, str(two): 2}, out, torch.bfloat16)
    mean, read = load_branch(out, model)
    assert read == replace(info, stage="stage 0")
    assert all(bool((parameter == 2).all()) for parameter in mean.parameters())
    assert all(tensor.dtype == torch.bfloat16 for tensor in load(out.read_bytes()).values())
    with pytest.raises(ValueError, match="shares must be above 0"):
        average_branches({str(one): 1, str(two): 0}, out)
    with pytest.raises(ValueError, match="two of them are one file"):
        average_branches({str(one): 1, str(one.parent / "." / ".." / tmp_path.name / one.name): 1}, out)
    save_branch(branch, replace(info, nfe=6), two)
    with pytest.raises(CheckpointError, match=r"1\.safetensors.*nfe=6.*does not average with.*0\.safetensors"):
        average_branches({str(one): 1, str(two): 1}, out)


@torch.no_grad()
def test_further_conditions_are_carried_by_files(model: Bagel, tmp_path: Path) -> None:
    """Such as how long a step is. A value of 0 leaves it out, and without an end the velocity at t itself is meant."""
    branch, path = model.generation.copy(), tmp_path / "branch.safetensors"
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE, DURATION)
    perturb(branch)
    save_branch(branch, BranchInfo("flow map", 1, base_hash(model)), path)
    loaded, _ = load_branch(path, model)
    assert set(loaded.conditions) == {TEXT_SCALE, IMAGE_SCALE, DURATION}
    t, s = torch.tensor([0.3, 0.9]), torch.tensor([0.1, 0.9])
    given = conditions_of(loaded, SCALES, t, s)
    assert given is not None
    torch.testing.assert_close(given[DURATION], torch.tensor([0.2, 0.0]))
    with_end, at_t = (velocity(model, branch, conditions_of(branch, SCALES, t, end)) for end in (s, None))
    torch.testing.assert_close(velocity(model, loaded, given), with_end, rtol=0, atol=0)
    assert not torch.allclose(with_end[0], at_t[0], atol=1e-4)
    perturb(branch.embedder(DURATION), 1.0)
    torch.testing.assert_close(velocity(model, branch, given)[1], with_end[1])
    torch.testing.assert_close(velocity(model, branch, conditions_of(branch, SCALES, t)), at_t)
    with pytest.raises(ValueError, match=r"conditions of this branch: .*duration.*; given: image_scale, text_scale"):
        velocity(model, branch, SCALES)
