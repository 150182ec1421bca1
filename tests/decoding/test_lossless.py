"""Speculative decoding is lossless: token for token the greedy answers of plain decoding, on a thousand prompts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import Literal

import pytest
import torch

from hyperbagel.bagel.segments import Document
from hyperbagel.decoding.adaptive import Adaptive
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.lookup import LookupSettings
from hyperbagel.decoding.proposal import TreeSettings
from hyperbagel.decoding.queue import AnswerQueue, Request
from hyperbagel.decoding.speculative import SpeculationSettings, Speculator
from tests.decoding.drafting import COSTS, documents, draft, target

PROMPTS = 1000
SETTINGS = DecodingSettings(max_tokens=16, stop=(7, 9))
WAYS: dict[str, tuple[Literal["hyper", "parallel"], SpeculationSettings]] = {
    "chain": ("hyper", SpeculationSettings(5)),
    "tree": ("hyper", SpeculationSettings(4, tree=TreeSettings(width=3, nodes=10))),
    "adaptive": ("hyper", SpeculationSettings(5, policy=Adaptive(2, COSTS))),
    "parallel": ("parallel", SpeculationSettings(5)),
    "looked up": ("hyper", SpeculationSettings(5, lookup=LookupSettings(match=1))),
    "tree grown on": (
        "hyper",
        SpeculationSettings(3, tree=TreeSettings(3, 10), lookup=LookupSettings(match=1, share=0.9, price=0)),
    ),
    "parallel tree": ("parallel", SpeculationSettings(4, tree=TreeSettings(width=3, nodes=10))),
}


def batches(size: int) -> Iterator[list[Document]]:
    """Prompts of all kinds: behind pictures, clean latents, first turns, and without any of these."""
    asked = documents(PROMPTS, seed=1)
    yield from (asked[start : start + size] for start in range(0, PROMPTS, size))


@cache
def plain() -> list[list[int]]:
    """Answers one by one, by the model's own layers."""
    model = target()
    with torch.inference_mode():
        return [answer for batch in batches(1) for answer in decode_text(model, model.prefill(batch), SETTINGS)]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1, 4, 16])
def test_greedy_answers_to_a_thousand_prompts_are_those_of_plain_decoding(size: int, way: str) -> None:
    kind, settings = WAYS[way]
    speculator = Speculator(target(), draft(kind, trained=True), settings)
    if size == 16:  # those that are finished are replaced
        requests = deque(Request(document, mark=i) for i, document in enumerate(documents(PROMPTS, seed=1)))
        found = {request.mark: answer for request, answer in AnswerQueue(speculator, SETTINGS, size).answer(requests)}
        answers = [found[i] for i in range(PROMPTS)]
    else:
        answers = [a for batch in batches(size) for a in speculator.decode(speculator.prefill(batch), SETTINGS)]
    differing = [i for i, (own, expected) in enumerate(zip(answers, plain(), strict=True)) if own != expected]
    assert len(answers) == PROMPTS and not differing
    assert len({tuple(answer) for answer in answers}) > PROMPTS / 10, "answers are too much alike to show much"
    if settings.policy is None:
        assert speculator.statistics.acceptance_length > 1.1, "nothing was accepted, so little was tested"
    assert min(speculator.statistics.n_alpha) < 1, "nothing was rejected, so little was tested"
