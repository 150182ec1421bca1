"""The draft head: its start, its alignment, its levels, and what it is fed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hyperbagel.bagel.build.assemble import NANO
from hyperbagel.bagel.mot import attend
from hyperbagel.draft.config import DraftConfig, feature_levels
from hyperbagel.draft.head import DraftHead
from hyperbagel.draft.intermediate import MetaQueryAttention
from tests.nano import nano_bagel

CONFIG = dataclasses.replace(NANO, llm=dataclasses.replace(NANO.llm, num_hidden_layers=6, vocab_size=64))
LLM = CONFIG.llm


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    return nano_bagel(CONFIG)


def features(length: int = 5) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {entry: torch.randn(2, length, 32, generator=generator) for entry in range(7)}


def test_levels_are_those_of_eagle3() -> None:
    assert feature_levels(32) == (2, 16, 29) and feature_levels(28) == (2, 14, 25)
    assert feature_levels(12, 5) == (2, 4, 6, 7, 9) or len(feature_levels(12, 5)) == 5
    assert feature_levels(12, 1) == (9,)
    assert all(0 < level <= 2 for level in feature_levels(2))
    # The stream that enters layer i is entry i of what the target records, before the final norm.
    assert DraftConfig(kind="eagle3").entries(LLM) == (2, 3)
    assert DraftConfig(levels=(0, 3, 6), meta_queries=False).entries(LLM) == (0, 3, 6)
    assert DraftConfig().entries(LLM) == (1, 2, 3, 4, 5, 6)
    with pytest.raises(ValueError, match="exceed the target's 6 layers"):
        DraftConfig(levels=(2, 3, 7)).entries(LLM)


def test_folded_attention_is_multi_head_attention_of_each_token() -> None:
    attention = MetaQueryAttention(3, LLM)
    layers = torch.randn(2, 5, 6, 32)
    x, heads = attention.norm(layers), (LLM.num_attention_heads, LLM.head_dim)
    q = attention.q_proj(attention.queries).unflatten(-1, heads).transpose(0, 1)  # (heads, Q, d)
    k, v = (p(x).unflatten(-1, heads).transpose(-2, -3) for p in (attention.k_proj, attention.v_proj))
    attended = F.scaled_dot_product_attention(q.expand(2, 5, -1, -1, -1), k, v)
    expected = attention.o_proj(attended.transpose(-2, -3).flatten(-2))
    torch.testing.assert_close(attention(layers), expected, atol=1e-5, rtol=1e-4)


def test_zero_init_starts_as_the_target_says(model) -> None:  # type: ignore[no-untyped-def]
    """Skips alone behind cross-attention and Dec; zero features; layers, norm and LM head of the target."""
    head = DraftHead.from_target(DraftConfig(), model)
    given = features()
    rope = head.rope(torch.arange(5).expand(2, -1))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    levels = torch.cat([given[level] for level in (2, 3, 3)], -1)
    torch.testing.assert_close(head.features.combine(given), levels)
    decoder = head.features.decoder
    assert decoder is not None
    q, k, v = decoder.input(levels, rope)
    torch.testing.assert_close(decoder.output(levels, attend(q, k, v, mask)), levels)
    feature = head.features(given, rope, mask)
    assert not feature.any()
    embedded = torch.randn(2, 5, 32)
    x = torch.zeros(2, 5, 32)
    assert not head.fuse(embedded, torch.randn(2, 5, 32))[0].any()
    for layer in model.understanding.layers[-2:]:
        q, k, v = layer.input(x, rope)
        x = layer.output(x, attend(q, k, v, mask))
    hidden = head(embedded, feature, rope, mask)
    torch.testing.assert_close(hidden, x)
    torch.testing.assert_close(head.logits(hidden), model.next_logits(x))


def test_gradients_reach_every_part_from_zero(model) -> None:  # type: ignore[no-untyped-def]
    """fc1 and fc2 both at zero are a saddle for a single step; a second step on the draft's own features leaves it."""
    head = DraftHead.from_target(DraftConfig(), model)
    given, rope = features(), head.rope(torch.arange(5).expand(2, -1))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    fusion = head.fusion
    assert fusion is not None
    for steps, moved in ((1, False), (2, True)):
        for _ in range(2):
            hidden = head.features(given, rope, mask)
            for _ in range(steps):
                hidden = head(given[0], hidden, rope, mask)
            optimizer.zero_grad()
            head.logits(hidden).square().mean().backward()
            optimizer.step()
        assert bool(head.features.fc1.weight.any()) is moved
    assert bool(fusion.fc2.weight[:, 32:].any())


def test_without_zero_init_nothing_starts_at_zero(model) -> None:  # type: ignore[no-untyped-def]
    head = DraftHead.from_target(DraftConfig(zero_init=False), model)
    assert all(bool(p.any()) for name, p in head.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (DraftConfig(), {"attention", "decoder", "fc1"}),
        (DraftConfig(meta_queries=False), {"decoder", "fc1"}),
        (DraftConfig(decoder=False, queries=2), {"attention", "fc1"}),
        (DraftConfig(kind="eagle3", layers=1), {"fc1"}),
    ],
)
def test_parts_are_settings(config: DraftConfig, parts: set[str]) -> None:
    head = DraftHead(config, LLM)
    assert {name for name, part in head.features.named_children() if isinstance(part, nn.Module)} == parts
    assert (head.fusion is None) == (config.kind == "eagle3")
    assert len(head.layers) == config.layers


def test_the_feature_fed_back_is_before_the_norm(model) -> None:  # type: ignore[no-untyped-def]
    head = DraftHead.from_target(DraftConfig(zero_init=False), model)
    rope = head.rope(torch.arange(5).expand(2, -1))
    embedded, feature = torch.randn(2, 2, 5, 32)
    before = head(embedded, feature, rope, None)
    with torch.no_grad():
        head.norm.weight.mul_(3)
    torch.testing.assert_close(head(embedded, feature, rope, None), before)
    torch.testing.assert_close(head.logits(before), head.lm_head(head.norm(before)))


def test_a_reduced_vocabulary_takes_the_target_rows(model) -> None:  # type: ignore[no-untyped-def]
    head = DraftHead.from_target(DraftConfig(), model, vocabulary=[40, 3, 7])
    assert head.vocabulary is not None and head.vocabulary.tolist() == [3, 7, 40]
    torch.testing.assert_close(head.lm_head.weight, model.understanding.lm_head.weight[[3, 7, 40]])
    assert head.target_ids(torch.tensor([2, 0])).tolist() == [40, 3]
    for vocabulary in ([3, 3], [64], []):
        with pytest.raises(ValueError, match="distinct token ids below 64"):
            DraftHead(DraftConfig(), LLM, vocabulary)


def test_impossible_settings_are_named(model) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="7 layers cannot start from a target of 6"):
        DraftHead.from_target(DraftConfig(layers=7), model)
    with pytest.raises(ValueError, match="layers >= 1"):
        DraftConfig(layers=0)
    with pytest.raises(ValueError, match="one residual stream a query"):
        DraftConfig(queries=2, levels=(1, 2, 3))
