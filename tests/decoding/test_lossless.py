"""Speculative decoding is lossless: token for token the greedy answers of plain decoding, on a thousand prompts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch

from hyperbagel.bagel.segments import Document
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.speculative import SpeculationSettings, Speculator
from hyperbagel.decoding.tree import TreeSettings
from tests.decoding.drafting import documents, draft, target

PROMPTS = 1000
SETTINGS = DecodingSettings(max_tokens=16, stop=(7, 9))
WAYS = {
    "chain": SpeculationSettings(5),
    "tree": SpeculationSettings(4, tree=TreeSettings(width=3, nodes=10)),
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
@pytest.mark.parametrize("size", [1, 4])
def test_greedy_answers_to_a_thousand_prompts_are_those_of_plain_decoding(size: int, way: str) -> None:
    speculator = Speculator(target(), draft("hyper", trained=True), WAYS[way])
    answers = [answer for batch in batches(size) for answer in speculator.decode(speculator.prefill(batch), SETTINGS)]
    differing = [i for i, (own, expected) in enumerate(zip(answers, plain(), strict=True)) if own != expected]
    assert len(answers) == PROMPTS and not differing
    assert len({tuple(answer) for answer in answers}) > PROMPTS / 10, "answers are too much alike to show much"
    assert speculator.statistics.acceptance_length > 1.2, "nothing was accepted, so little was tested"
    assert min(speculator.statistics.n_alpha) < 1, "nothing was rejected, so little was tested"
