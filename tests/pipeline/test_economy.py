"""Weights in the host's memory, rounded weights, compiled layers: what is drawn and answered stays, or nearly so."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hyperbagel.bagel.adapters import load_adapters, save_adapters, split
from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE
from hyperbagel.bagel.branch_checkpoint import BranchInfo
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.joinable import joinable
from hyperbagel.bagel.joined import join
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.quantized import KINDS, Quantization, quantize
from hyperbagel.bagel.segments import LatentSegment, TextSegment
from hyperbagel.cli import main
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.speculative import Speculator
from hyperbagel.pipeline import economy
from hyperbagel.pipeline.device import Runtime
from hyperbagel.pipeline.economy import Offload, bring, compile_drawing, read_by
from hyperbagel.pipeline.footprint import Footprint, Request, ways
from hyperbagel.pipeline.pipeline import load
from tests.nano import nano_bagel

CPU = torch.device("cpu")
TOKENS = DecodingSettings(8, stop=())


def test_what_is_needed_is_on_the_device_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    places: dict[int, str] = {}
    monkeypatch.setattr(economy, "bring", lambda part, device: places.update({id(part): device.type}))
    branch, other, coder = parts = [nn.Linear(2, 2) for _ in range(3)]
    offload = Offload(torch.device("cuda"), parts)
    for needed in ([branch], [other, coder], []):
        offload.need(*needed)
        assert [places[id(part)] for part in parts] == ["cuda" if part in needed else "cpu" for part in parts]
    adapted = nn.Linear(2, 2)
    adapted.weight = other.weight  # what shares weights stays with them
    offload.need(other)
    offload.parts.append(adapted)
    offload.need(adapted)
    assert places[id(other)] == places[id(adapted)] == "cuda"


def test_what_is_moved_stays_shared() -> None:
    """The meta device stands for another one."""
    one, other = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    other.weight = one.weight
    bring(one, torch.device("meta"))
    assert other.weight is one.weight and one.weight.is_meta and one.running_mean.is_meta
    assert not other.bias.is_meta
    bring(other, torch.device("meta"))
    assert other.weight is one.weight and other.bias.is_meta


def test_each_task_needs_its_own_parts(nano_folder: str, nano_branch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the results are those of a pipeline that keeps everything on the device."""
    needed: list[set[str]] = []
    plain = load(nano_folder, nano_branch, device="cpu")
    frugal = load(nano_folder, nano_branch, device="cpu", offload=True)
    names = {id(frugal._branch): "branch", id(frugal.model.generation): "own", id(frugal.model.autoencoder): "coder"}
    monkeypatch.setattr(Offload, "need", lambda self, *parts: needed.append({names[id(part)] for part in parts}))

    def both(task: str, *arguments: object, **options: object) -> None:
        needed.clear()
        pictures = [getattr(pipeline, task)(*arguments, **options) for pipeline in (plain, frugal)]
        assert pictures[0].image.tobytes() == pictures[1].image.tobytes()

    both("generate", "a photo of a red circle", steps=2, size=(16, 16))
    assert needed == [set(), {"branch"}, {"coder"}]
    both("edit", Image.new("RGB", (16, 16), "red"), "Make it blue.", steps=2)
    assert needed == [{"own", "coder"}, {"branch"}, {"coder"}]
    needed.clear()
    assert str(plain.ask("what?", settings=TOKENS)) == str(frugal.ask("what?", settings=TOKENS))
    assert needed == [set()]
    latent = [LatentSegment(torch.zeros(4, 4, 4)), TextSegment(torch.tensor([5]))]
    assert read_by(plain.model, [latent]) == [plain.model.generation, plain.model.autoencoder]


@pytest.mark.parametrize(("place", "offload"), [("cuda", False), ("cuda", True), ("cpu", False)])
def test_layers_are_joined_where_they_stay_on_a_gpu(
    place: str, offload: bool, nano_folder: str, nano_branch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is played here. On a CPU pictures stay as they were, to the last bit."""
    pipeline = load(nano_folder, nano_branch, device="cpu")
    assert pipeline._branch is not None
    monkeypatch.setattr(economy, "bring", lambda part, device: None)
    monkeypatch.setattr(Runtime, "resolve", lambda self: (torch.device(place), torch.float32))
    economy.settle(Runtime(offload=offload), pipeline.model, [pipeline._branch])
    parts = list(joinable(pipeline.model, pipeline._branch))
    assert {part.joined is not None for part in parts} == {place == "cuda" and not offload}


def test_what_is_moved_comes_apart() -> None:
    model = nano_bagel()
    join(model.generation)
    bring(model.generation, CPU)
    assert all(part.joined is not None for part in joinable(model.generation))
    bring(model.generation, torch.device("meta"))
    assert all(part.joined is None for part in joinable(model.generation))


@pytest.mark.parametrize("kind", KINDS)
def test_joined_weights_may_be_rounded(kind: Quantization) -> None:
    """They come apart, and nothing is left of what they were."""
    pytest.importorskip("torchao")
    model = nano_bagel().eval()
    join(model.understanding, model.generation)
    quantize(kind, CPU, model.understanding, model.generation)
    join(model.understanding, model.generation)
    assert all(part.joined is None for part in joinable(model))


def real_bytes(module: nn.Module) -> int:
    """Of parameters and buffers, rounded ones by what they are made of; what is shared counts once."""

    def size(value: torch.Tensor) -> int:
        if type(value) in (torch.Tensor, nn.Parameter):
            return value.nbytes
        names, _ = value.__tensor_flatten__()
        return sum(size(getattr(value, name)) for name in names)

    return sum(size(value) for value in {id(v): v for v in (*module.parameters(), *module.buffers())}.values())


def rounded(kind: Quantization) -> Bagel:
    pytest.importorskip("torchao")
    model = nano_bagel().eval()
    quantize(kind, CPU, model.understanding, model.generation)
    return model


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_rounded_weights_take_what_is_planned_and_compute_nearly_the_same(kind: Quantization) -> None:
    model, plain = rounded(kind), nano_bagel().eval()
    planned = Footprint(plain.config, kind, itemsize=4).weights()
    for name in ("understanding", "generation"):
        assert real_bytes(getattr(model, name)) == pytest.approx(planned[name], rel=0.01)
    ids = [TextSegment(torch.arange(10, 20))]
    grid = plain.latent_grid([(32, 32)])
    x_t, t = torch.randn(1, 16, plain.config.latent_token_dim), torch.full((1,), 0.5)
    expected, got = (m.velocity(x_t, t, m.prefill([ids]), grid) for m in (plain, model))
    error = float((got - expected).norm() / expected.norm())
    assert 0 < error < {"int8": 0.05, "fp8": 0.15, "nf4": 0.4}[kind]
    context = model.prefill([ids])
    assert Speculator(model).decode(context, TOKENS) == decode_text(model, context, TOKENS)


def test_adapters_lie_over_rounded_weights_that_stay_shared(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    model = nano_bagel().eval()
    taught = model.generation.copy()
    taught.add_condition(TEXT_SCALE, IMAGE_SCALE)
    with torch.no_grad():
        for name, parameter in taught.named_parameters():
            if name.endswith("q_proj.weight"):
                parameter += 0.01 * torch.outer(torch.randn(parameter.shape[0]), torch.randn(parameter.shape[1]))
    low, full, _ = split(taught, model.generation, 2)
    save_adapters(low, full, BranchInfo("CFGDistillation", 0, ""), tmp_path)
    branch = load_adapters(tmp_path / "adapter_model.safetensors", model.generation)
    quantize("int8", CPU, model.understanding, model.generation, branch)
    own = model.generation.get_submodule("layers.0.input.q_proj").weight
    assert branch.get_submodule("layers.0.input.q_proj.base_layer").weight is own
    assert type(own) is not nn.Parameter
    both = nn.ModuleList([model.generation.layers, branch.layers])
    assert real_bytes(both) < 1.5 * real_bytes(model.generation.layers)
    grid, t = model.latent_grid([(32, 32)]), torch.full((1,), 0.5)
    context = model.prefill([[TextSegment(torch.arange(10, 20))]])
    x_t = torch.randn(1, 16, model.config.latent_token_dim)
    with torch.no_grad():
        drawn = model.velocity(x_t, t, context, grid, branch, {TEXT_SCALE: 4 * t, IMAGE_SCALE: 0 * t})
    assert drawn.isfinite().all()


def test_a_missing_package_is_named_in_one_line(nano_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(SystemExit, match=r"hyperbagel chat: .*pip install torchao"):
        main(["chat", "-", "what?", "--model", nano_folder, "--quantize", "int8", "--device", "cpu"])


def test_commands_take_short_options(nano_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchao")
    out = tmp_path / "a.png"
    options = ["--model", nano_folder, "--steps", "1", "--device", "cpu"]
    main(["generate", "a red circle", *options, "--quantize", "int8", "--offload", "--out", str(out)])
    assert "2 NFE" in capsys.readouterr().out and out.is_file()


def test_planned_weights_are_those_of_a_model(nano_folder: str, nano_branch: str) -> None:
    pipeline = load(nano_folder, nano_branch, device="cpu")
    planned = Footprint(pipeline.model.config, itemsize=4).weights()
    assert pipeline._branch is not None
    for name in ("understanding", "generation", "autoencoder"):
        assert real_bytes(getattr(pipeline.model, name)) == planned[name]
    assert real_bytes(pipeline._branch) == planned["branch"]


def test_a_plan_of_bagel_7b_knows_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures of a branch took 30.0 GiB on a GPU, one at once, and 35.6 GiB four at once."""
    config = BagelConfig()
    for batch, measured in ((1, 30.0), (4, 35.6)):
        assert Footprint(config).tasks(Request(batch=batch))["pictures"] / 2**30 == pytest.approx(measured, rel=0.05)
    sizes = {name: footprint.tasks(Request()) for name, footprint in ways(config)}
    assert all(sizes[f"{name} --offload"]["edits"] < sizes[name]["edits"] for name in ("bfloat16", "--quantize nf4"))
    assert sizes["--quantize nf4 --offload"]["pictures"] < 12 * 2**30
    main(["plan", "--inference"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100 and "24 GiB" in shown


def test_what_cannot_be_had_together_is_refused(nano_folder: str) -> None:
    with pytest.raises(ValueError, match="leave out compile or offload"):
        load(nano_folder, device="cpu", compile=True, offload=True, quantize="int8")


@pytest.mark.slow
def test_compiled_pictures_are_the_same_but_for_rounding(nano_folder: str, nano_branch: str) -> None:
    """By PyTorch's own compiler, of two sizes and prompts of several lengths."""
    plain, compiled = (load(nano_folder, nano_branch, device="cpu", compile=compile) for compile in (False, True))
    for prompt, size in (("a circle", (16, 16)), ("a photo of a red circle", (16, 16)), ("a star", (32, 16))):
        images = [np.asarray(p.generate(prompt, steps=2, size=size).image, dtype=int) for p in (plain, compiled)]
        assert np.abs(images[0] - images[1]).max() <= 2


def test_what_compiles_keeps_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    model = nano_bagel()
    names = list(model.state_dict())
    compile_drawing(model)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].endswith("hyperbagel/compiled")
    assert model.compiled == "fixed" and list(model.state_dict()) == names
    assert copy.deepcopy(model.autoencoder).network.decoder is not None
