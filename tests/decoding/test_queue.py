"""A batch of changing members: answers are those that each document gets alone."""

from __future__ import annotations

from collections import deque
from typing import Literal

import pytest
import torch

from hyperbagel.decoding.adaptive import Adaptive
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.lookup import LookupSettings
from hyperbagel.decoding.queue import AnswerQueue, Request
from hyperbagel.decoding.speculative import SpeculationSettings, Speculator
from hyperbagel.decoding.speculative_loop import DecodingRun
from tests.decoding.drafting import COSTS, SETTINGS, documents, draft, target

ENDS = DecodingSettings(max_tokens=24, stop=(1, 7, 9, 18, 34))
WAYS = {
    "plain": (None, None),
    "chain": ("hyper", SpeculationSettings(4)),
    "adaptive": ("hyper", SpeculationSettings(6, policy=Adaptive(2, COSTS))),
    "parallel": ("parallel", SpeculationSettings(4)),
    "looked up": ("hyper", SpeculationSettings(3, lookup=LookupSettings(match=1))),
}


def speculator_of(way: str) -> Speculator:
    kind, settings = WAYS[way]
    return Speculator(target(), None if kind is None else draft(kind, trained=True), settings)


@pytest.mark.parametrize("prefix", [(), (11, 12)])
@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("way", WAYS)
def test_answers_are_those_of_documents_alone(way: str, size: int, prefix: tuple[int, ...]) -> None:
    model, asked = target(), documents(21)
    expected = [decode_text(model, model.prefill([d]), ENDS, prefix=prefix)[0] for d in asked]
    queue = AnswerQueue(speculator_of(way), ENDS, size, prefix)
    found = {
        request.mark: answer for request, answer in queue.answer(deque(Request(d, mark=i) for i, d in enumerate(asked)))
    }
    assert [found[i] for i in range(len(asked))] == expected
    assert len(set(map(len, expected))) > 2, "answers are too much alike to show much"


def test_places_are_taken_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three quarters of a batch are full as long as documents wait."""
    rows: list[int] = []
    go = DecodingRun.round

    def watched(self: DecodingRun, plain: bool = False) -> dict[int, list[int]]:
        if not plain:
            rows.append(len(self.documents))
        return go(self, plain)

    monkeypatch.setattr(DecodingRun, "round", watched)
    waiting = deque(map(Request, documents(40)))
    seen = []
    for _ in AnswerQueue(speculator_of("chain"), ENDS, 8).answer(waiting):
        seen.append((len(waiting), rows[-1] if rows else 8))
    assert max(rows) == 8 and all(row > 6 for left, row in seen if left)


def test_what_is_added_on_the_way_is_answered_too() -> None:
    asked = documents(5)
    waiting = deque([Request(asked[0], mark=0)])
    order = []
    for request, _ in AnswerQueue(speculator_of("adaptive"), SETTINGS, 2).answer(waiting):
        order.append(request.mark)
        if request.mark < 4:
            waiting.append(Request(asked[request.mark + 1], mark=request.mark + 1))
    assert order == [0, 1, 2, 3, 4] and not waiting


@pytest.mark.parametrize("way", ["plain", "chain"])
def test_drawn_answers_belong_to_their_document(way: Literal["plain", "chain"]) -> None:
    """Plainly, they do not depend on their neighbours; drafted, they repeat."""
    settings = DecodingSettings(8, temperature=1.0, top_p=0.9, stop=(7,))
    asked = documents(9)

    def answers(size: int) -> list[list[int]]:
        requests = deque(Request(d, torch.Generator().manual_seed(i), i) for i, d in enumerate(asked))
        found = {
            request.mark: answer for request, answer in AnswerQueue(speculator_of(way), settings, size).answer(requests)
        }
        return [found[i] for i in range(len(asked))]

    assert answers(4) == answers(4)
    if way == "plain":
        assert answers(4) == answers(1)
    with pytest.raises(ValueError, match="generator for each"):
        next(AnswerQueue(speculator_of(way), settings, 2).answer(deque([Request(asked[0])])))
