"""Exported heads: the layout that serving engines expect, checked by computing with it as they do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hyperbagel.bagel.build.assemble import NANO
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.export import export_eagle3, feature_layers
from hyperbagel.draft.head import DraftHead
from tests.nano import nano_bagel

CONFIG = dataclasses.replace(NANO, llm=dataclasses.replace(NANO.llm, num_hidden_layers=6, vocab_size=64))
KEYS = {
    "d2t", "t2d", "embed_tokens.weight", "fc.weight", "lm_head.weight", "norm.weight",
    "midlayer.hidden_norm.weight", "midlayer.input_layernorm.weight", "midlayer.post_attention_layernorm.weight",
    *(f"midlayer.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"midlayer.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
}  # fmt: skip


def test_an_eagle3_head_computes_the_same_from_its_checkpoint(tmp_path: Path) -> None:
    """Written out as serving engines do: fc, then a Llama layer whose attention reads [embedding ; feature]."""
    model = nano_bagel(CONFIG)
    head = DraftHead.from_target(DraftConfig(kind="eagle3", layers=1), model, vocabulary=range(3, 40, 2))
    export_eagle3(head, model, tmp_path)
    tensors, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    assert set(tensors) == KEYS
    assert config["architectures"] == ["LlamaForCausalLMEagle3"] and config["draft_vocab_size"] == 19
    assert config.items() >= feature_layers([2, 3, 3]).items()
    assert tensors["d2t"][:3].tolist() == [3, 4, 5] and int(tensors["t2d"].sum()) == 19 and bool(tensors["t2d"][5])

    torch.manual_seed(0)
    low, middle = torch.randn(2, 1, 4, 32)
    levels, ids = [low, middle, middle], torch.tensor([[5, 9, 11, 20]])  # six layers: the high level is the middle one
    t = {name.removesuffix(".weight"): value for name, value in tensors.items()}
    norm = lambda x, name: F.rms_norm(x, x.shape[-1:], t[name], config["rms_norm_eps"])  # noqa: E731
    feature, embedded = torch.cat(levels, -1) @ t["fc"].T, t["embed_tokens"][ids]
    read = torch.cat([norm(embedded, "midlayer.input_layernorm"), norm(feature, "midlayer.hidden_norm")], -1)
    rope = head.rope(torch.arange(4)[None])
    q, k, v = ((read @ t[f"midlayer.self_attn.{n}_proj"].T).unflatten(-1, (-1, 8)).transpose(1, 2) for n in "qkv")
    attended = F.scaled_dot_product_attention(rope.apply(q), rope.apply(k), v, is_causal=True, enable_gqa=True)
    x = feature + attended.transpose(1, 2).flatten(2) @ t["midlayer.self_attn.o_proj"].T
    h = norm(x, "midlayer.post_attention_layernorm")
    gate = F.silu(h @ t["midlayer.mlp.gate_proj"].T) * (h @ t["midlayer.mlp.up_proj"].T)
    x = x + gate @ t["midlayer.mlp.down_proj"].T
    logits = norm(x, "norm") @ t["lm_head"].T

    mask = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(head.features({2: low, 3: middle}, rope, mask), feature, atol=1e-5, rtol=1e-4)
    own = head(embedded, feature, rope, mask)
    torch.testing.assert_close(head.logits(own), logits, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("layers", "entering", "leaving"), [(94, [2, 47, 91], [1, 46, 90]), (28, [2, 14, 25], [1, 13, 24])]
)
def test_each_engine_is_told_the_features_as_it_counts(layers: int, entering: list[int], leaving: list[int]) -> None:
    """vLLM: id j of the top-level list is the stream that enters layer j. SGLang: it adds 1 to the nested list, whose
    ids are of outputs; published heads for a target of 94 layers have [1, 46, 90] there."""
    llm = dataclasses.replace(NANO.llm, num_hidden_layers=layers)
    told = feature_layers(DraftConfig(kind="eagle3", layers=1).level_entries(llm))
    assert told["eagle_aux_hidden_state_layer_ids"] == entering
    assert told["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == leaving
    assert [layer + 1 for layer in leaving] == entering


def test_levels_that_engines_do_not_capture_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = nano_bagel(dataclasses.replace(CONFIG, llm=dataclasses.replace(CONFIG.llm, num_hidden_layers=8)))
    for levels, told in (((2, 4, 5), False), ((0, 4, 5), True), ((2, 2, 5), True), ((2, 4, 8), True)):
        caplog.clear()
        config = DraftConfig(kind="eagle3", layers=1, levels=levels)
        export_eagle3(DraftHead.from_target(config, model), model, tmp_path)
        assert ("capture the streams that enter layers 1 to 7" in caplog.text) == told


def test_a_hyper_bagel_head_keeps_all_its_tensors(tmp_path: Path) -> None:
    model = nano_bagel(CONFIG)
    head = DraftHead.from_target(DraftConfig(), model)
    export_eagle3(head, model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert len(tensors) == len(head.state_dict()) + 3
    shapes = {"fc.weight": (32, 96), "fuse.fc2.weight": (32, 64), "intermediate.queries": (3, 32)}
    assert {name: tuple(tensors[name].shape) for name in shapes} == shapes
    torch.testing.assert_close(
        tensors["layers.1.self_attn.q_norm.weight"], model.understanding.layers[-1].input.q_norm.weight.detach()
    )
    decoder = head.features.decoder
    assert decoder is not None
    torch.testing.assert_close(
        tensors["intermediate.decoder.mlp.up_proj.weight"], decoder.output.up_proj.weight.detach()
    )
    assert json.loads((tmp_path / "config.json").read_text())["hyper_bagel"]["queries"] == 3


def test_what_engines_cannot_load_is_refused(tmp_path: Path) -> None:
    model = nano_bagel(CONFIG)
    head = DraftHead.from_target(DraftConfig(kind="eagle3", layers=2), model)
    with pytest.raises(ValueError, match="1 layer over 3 levels"):
        export_eagle3(head, model, tmp_path)


def test_parallel_heads_are_not_exported(tmp_path: Path) -> None:
    model = nano_bagel(CONFIG)
    with pytest.raises(ValueError, match="know no parallel heads"):
        export_eagle3(DraftHead.from_target(DraftConfig(kind="parallel"), model), model, tmp_path)
