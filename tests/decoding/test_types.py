"""Decoding in every type that commands offer, by every path: what comes out is the model's own choice."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor

from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, TextSegment
from hyperbagel.decoding.adaptive import Adaptive
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.fused import Norm
from hyperbagel.decoding.speculative import SpeculationSettings, Speculator
from hyperbagel.decoding.tree import TreeSettings
from hyperbagel.draft.head import DraftHead
from tests.decoding.drafting import COSTS, documents, draft, target

TYPES = (torch.float32, torch.bfloat16)
PREFIX = (11, 12)
SETTINGS = DecodingSettings(max_tokens=24, stop=())
WAYS = {
    "chain": ("hyper", SpeculationSettings(4)),
    "confident": ("hyper", SpeculationSettings(24, 0.5)),
    "adaptive": ("hyper", SpeculationSettings(24, policy=Adaptive(2, COSTS))),
    "tree": ("hyper", SpeculationSettings(3, tree=TreeSettings(width=3, nodes=8))),
    "eagle3 chain": ("eagle3", SpeculationSettings(4)),
    "eagle3 tree": ("eagle3", SpeculationSettings(3, tree=TreeSettings(width=3, nodes=8))),
    "parallel": ("parallel", SpeculationSettings(4)),
    "parallel tree": ("parallel", SpeculationSettings(3, tree=TreeSettings(width=3, nodes=8))),
}
PATHS = ("by the model's layers", "fused", "own weights", *WAYS)


@cache
def typed(dtype: torch.dtype) -> Bagel:
    return copy.deepcopy(target()).to(dtype)


@cache
def typed_draft(kind: str, dtype: torch.dtype) -> DraftHead:
    return copy.deepcopy(draft(kind, trained=True)).to(dtype)


def speculator_of(path: str, dtype: torch.dtype) -> Speculator:
    kind, way = WAYS.get(path, (None, None))
    head = None if kind is None else typed_draft(kind, dtype)
    return Speculator(typed(dtype), head, way, fuse=path != "own weights")


def answers(path: str, dtype: torch.dtype, asked: list[Document], settings: DecodingSettings) -> list[list[int]]:
    model = typed(dtype)
    if path == PATHS[0]:
        return decode_text(model, model.prefill(asked), settings, torch.Generator().manual_seed(0), prefix=PREFIX)
    speculator = speculator_of(path, dtype)
    return speculator.decode(speculator.prefill(asked), settings, torch.Generator().manual_seed(0), prefix=PREFIX)


@torch.no_grad()
def shortfall(dtype: torch.dtype, document: Document, answer: list[int]) -> Tensor:
    """By how much each token of an answer misses the largest logit, in standard deviations of the logits, as the same
    weights give them in float32."""
    model = copy.deepcopy(typed(dtype)).float()
    ids = torch.tensor([*PREFIX, *answer])
    stream = model.run(model.layout([[*document, TextSegment(ids)]])).streams.und[0]
    logits = model.next_logits(stream[-len(answer) - 2 : -2])
    chosen = logits.gather(-1, ids[-len(answer) :, None])[:, 0]
    return (logits.max(-1).values - chosen) / logits.std(-1)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_greedy_tokens_are_the_models_choice(path: str, dtype: torch.dtype) -> None:
    """Not compared token by token: passes over one token and over several add up in another order, and in bfloat16,
    with three digits, two good tokens are often closer together than that."""
    asked = documents(4, seed=3)
    made = answers(path, dtype, asked, SETTINGS)
    missed = torch.cat([shortfall(dtype, document, answer) for document, answer in zip(asked, made, strict=True)])
    assert len(missed) == 4 * SETTINGS.max_tokens
    assert float(missed.max()) <= (1e-4 if dtype == torch.float32 else 0.1)
    assert int((missed > 0).sum()) <= len(missed) / 10
    assert len({token for answer in made for token in answer}) > 10, "answers are too much alike to show much"


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_sampled_answers_repeat_with_the_seed(path: str, dtype: torch.dtype) -> None:
    asked, settings = documents(4, seed=3), DecodingSettings(8, temperature=0.8, top_p=0.9, stop=())
    made = answers(path, dtype, asked, settings)
    assert made == answers(path, dtype, asked, settings)
    assert {len(answer) for answer in made} == {8}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("path", WAYS)
def test_drafts_are_accepted(path: str, dtype: torch.dtype) -> None:
    speculator = speculator_of(path, dtype)
    asked = documents(8)
    speculator.decode(speculator.prefill(asked), DecodingSettings(24, stop=()))
    assert speculator.statistics.acceptance_length > 1.1


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_norms_are_those_of_the_model(dtype: torch.dtype) -> None:
    """Also those of heads, of which the first ones (queries) have other weights than the rest (keys)."""
    torch.manual_seed(0)
    queries, keys = (torch.nn.RMSNorm(16, 1e-6).to(dtype) for _ in range(2))
    with torch.no_grad():
        for norm in (queries, keys):
            norm.weight += torch.randn(16)
        x = (3 * torch.randn(2, 3, 6, 16)).to(dtype)
        expected = torch.cat([queries(x[:, :, :4]), keys(x[:, :, 4:])], dim=2)
        joined = Norm(torch.cat([queries.weight.expand(4, -1), keys.weight.expand(2, -1)]), 1e-6)
        tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0, "rtol": 0}
        torch.testing.assert_close(joined(x), expected, **tolerance)
        torch.testing.assert_close(Norm(queries.weight, 1e-6)(x), queries(x), **tolerance)
