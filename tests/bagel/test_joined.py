"""Joined layers compute the same, on the memory of before, and come apart when anything happens to their weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hyperbagel.bagel.adapters import LowRankLinear, load_adapters, save_adapters, split
from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE, GenerationBranch
from hyperbagel.bagel.branch_info import BranchInfo
from hyperbagel.bagel.joinable import joinable, separate
from hyperbagel.bagel.joined import join, whole_of
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import TextSegment
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.speculative import SpeculationSettings, Speculator
from tests.decoding.drafting import SETTINGS, documents, draft, target
from tests.nano import nano_bagel

SCALES = {TEXT_SCALE: torch.full((1,), 4.0), IMAGE_SCALE: torch.zeros(1)}


def bytes_of(*modules: nn.Module) -> int:
    """Of all memory under weights and what they are joined to, whoever shares it."""
    values = [value for module in modules for value in module.parameters()]
    values += [part.joined.weight for part in joinable(*modules) if part.joined is not None]  # type: ignore[attr-defined]
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values}
    return sum(storages.values())


@torch.no_grad()
def drawn(model: Bagel, branch: GenerationBranch | None = None) -> Tensor:
    """One velocity after a prompt."""
    context = model.prefill([[TextSegment(torch.arange(10, 20))]])
    grid = model.latent_grid([(32, 32)])
    x_t = torch.randn(1, 16, model.config.latent_token_dim, generator=torch.Generator().manual_seed(0))
    scales = None if branch is None else SCALES
    return model.velocity(x_t.to(model.dtype), torch.full((1,), 0.5), context, grid, branch, scales)


def adapted(model: Bagel, folder: Path) -> GenerationBranch:
    """A branch of adapters over the model's own, with biases of its own."""
    taught = model.generation.copy()
    taught.add_condition(TEXT_SCALE, IMAGE_SCALE)
    with torch.no_grad():
        for name, parameter in taught.named_parameters():
            if name.endswith(("q_proj.weight", "up_proj.weight")):
                parameter += 0.1 * torch.outer(torch.randn(parameter.shape[0]), torch.randn(parameter.shape[1]))
            if name.endswith("_proj.bias"):
                parameter += 0.1
    low, full, _ = split(taught, model.generation, 2)
    save_adapters(low, full, BranchInfo("CFGDistillation", 0, ""), folder)
    return load_adapters(folder / "adapter_model.safetensors", model.generation)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_results_are_those_of_single_products(dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    model = nano_bagel().to(dtype)
    branch = adapted(model, tmp_path)
    everything = (model.understanding, model.generation, branch)
    expected, memory = [drawn(model), drawn(model, branch)], bytes_of(*everything)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    join(*everything)
    assert all(part.joined is not None for part in joinable(*everything))
    assert bytes_of(*everything) == memory
    for before, now in zip(expected, (drawn(model), drawn(model, branch)), strict=True):
        torch.testing.assert_close(now, before, atol=tolerance, rtol=tolerance)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_joined_model_is_saved_as_any_other(tmp_path: Path) -> None:
    model = nano_bagel()
    model.save_pretrained(tmp_path / "before")
    join(model.understanding, model.generation)
    model.save_pretrained(tmp_path / "after")
    files = [(tmp_path / when / "ema.safetensors").read_bytes() for when in ("before", "after")]
    assert files[0] == files[1]


def test_whoever_joins_again_changes_nothing() -> None:
    model = nano_bagel()
    join(model.generation)
    places = [value.data_ptr() for value in model.generation.parameters()]
    separate(model.generation)
    assert all(part.joined is None for part in joinable(model.generation))
    join(model.generation)
    assert [value.data_ptr() for value in model.generation.parameters()] == places


@pytest.mark.parametrize("happens", ["copied", "cast", "replaced"])
def test_what_happens_to_weights_takes_them_apart(happens: str) -> None:
    """Nothing computes with what the weights were before."""
    model = nano_bagel()
    join(model.understanding, model.generation)
    first = model.generation.layers[0].get_submodule("input")
    if happens == "copied":
        branch = model.generation.copy()
        with torch.no_grad():
            branch.layers[0].get_submodule("input.q_proj").weight.zero_()
        assert all(part.joined is None for part in joinable(branch))
        assert first.joined is not None and first.q_proj.weight.any()
    elif happens == "cast":
        model.double()
        assert drawn(model).dtype == torch.float64 and first.joined is None
    else:
        expected = drawn(model)
        layer = first.q_proj
        first.set_submodule(
            "q_proj", LowRankLinear(layer, torch.ones(1, layer.in_features), torch.ones(layer.out_features, 1))
        )
        assert first.joined is None and not torch.allclose(drawn(model), expected)


def test_weights_that_change_in_place_change_the_product() -> None:
    model, other = nano_bagel(), nano_bagel(seed=5)
    join(model.understanding, model.generation)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(drawn(model), drawn(other), atol=1e-5, rtol=1e-5)


def test_a_branch_that_shares_a_part_of_some_weights_stays_as_it_is() -> None:
    """To join them there would take them from the other."""
    model = nano_bagel()
    branch = copy.deepcopy(model.generation, {id(value): value for value in model.generation.parameters()})
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    own = branch.layers[0].get_submodule("input.k_proj")
    own.weight = nn.Parameter(own.weight.detach() + 0.1)
    expected, memory = drawn(model, branch), bytes_of(model.generation, branch)
    join(model.generation, branch)
    assert bytes_of(model.generation, branch) == memory
    first, second = (network.layers[0].get_submodule("input") for network in (model.generation, branch))
    assert first.joined is not None and second.joined is None
    torch.testing.assert_close(drawn(model, branch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["hyper", "eagle3"])
def test_decoding_takes_the_joined_weights(kind: str) -> None:
    """Without copies of them, to the same answers in float64."""
    model, head = (copy.deepcopy(part).double() for part in (target(), draft(kind, False)))  # type: ignore[arg-type]
    context = model.prefill(documents(3))
    expected = decode_text(model, context, SETTINGS)
    join(model.understanding, head)
    layer = model.understanding.layers[0].get_submodule("input")
    assert whole_of([layer.q_proj, layer.k_proj, layer.v_proj]) is not None
    speculator = Speculator(model, head, SpeculationSettings(3), fuse=False)
    assert all(len(each.qkv.parts) == len(each.gate_up.parts) == 1 for each in speculator.target.layers)
    assert bytes_of(model.understanding) == bytes_of(copy.deepcopy(model.understanding))
    assert speculator.decode(speculator.prefill(documents(3)), SETTINGS) == expected
    assert decode_text(model, context, DecodingSettings(4, stop=())) is not None


def test_layers_that_lie_apart_or_in_another_order_are_no_whole() -> None:
    q, k = nn.Linear(4, 6), nn.Linear(4, 2)
    assert whole_of([q, k]) is None
    whole = torch.arange(32.0).view(8, 4)
    q.weight.data, k.weight.data = whole[:6], whole[6:]
    assert whole_of([q, k]) is None  # their biases lie apart
    q.bias = k.bias = None
    found = whole_of([q, k])
    assert found is not None and torch.equal(found[0], whole) and found[1] is None
    assert whole_of([k, q]) is None
