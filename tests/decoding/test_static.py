"""Rounds that are all alike write what rounds of any shape write."""

from __future__ import annotations

import pytest
import torch

from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.proposal import TreeSettings
from hyperbagel.decoding.speculative import SpeculationSettings, Speculator
from tests.decoding.drafting import SETTINGS, documents, draft, target


def pair(kind: str | None, trained: bool = False, reduced: bool = False, length: int = 3) -> list[Speculator]:
    head = None if kind is None else draft(kind, trained, reduced)
    return [Speculator(target(), head, SpeculationSettings(length), static=static) for static in (False, True)]


@pytest.mark.parametrize("prefix", [(), (11, 12, 13)])
@pytest.mark.parametrize(
    ("kind", "trained", "reduced"),
    [(None, False, False), ("hyper", True, False), ("hyper", False, True), ("eagle3", False, False)],
)
def test_answers_are_those_of_other_rounds(
    kind: str | None, trained: bool, reduced: bool, prefix: tuple[int, ...]
) -> None:
    """Of documents of all kinds and lengths at once, to the last token, also token by token."""
    dynamic, static = pair(kind, trained, reduced)
    for speculator in (dynamic, static):
        speculator.shown = []
    contexts = [speculator.prefill(documents(5)) for speculator in (dynamic, static)]
    answers = [
        speculator.decode(
            context, SETTINGS, on_tokens=lambda new, s=speculator: s.shown.append(new.tolist()), prefix=prefix
        )
        for speculator, context in zip((dynamic, static), contexts, strict=True)
    ]
    assert answers[0] == answers[1]
    tokens = [[[t for t in row if t >= 0] for row in zip(*s.shown, strict=True)] for s in (dynamic, static)]
    assert tokens[0] == tokens[1]


def test_a_context_that_the_draft_head_does_not_know() -> None:
    dynamic, static = pair("hyper", trained=True)
    context = target().prefill(documents(3))
    assert dynamic.decode(context, SETTINGS) == static.decode(context, SETTINGS)


def test_buffers_are_used_again_and_keep_nothing_of_earlier_answers() -> None:
    """By answers of one shape; another number of documents gets others."""
    dynamic, static = pair("hyper", trained=True)
    settings = DecodingSettings(20, stop=())
    used = []
    for asked in (documents(2), documents(2, seed=1), documents(3)):
        assert dynamic.decode(dynamic.prefill(asked), settings) == static.decode(static.prefill(asked), settings)
        used.append(static._rounds)
    assert used[0] is used[1] and used[1] is not used[2]


def test_a_round_looks_at_nothing() -> None:
    """A GPU could not replay it otherwise."""
    from tests.flow.test_sampler import Looks

    _, static = pair("hyper", trained=True)
    static.decode(static.prefill(documents(2)), SETTINGS)
    assert static._rounds is not None
    with torch.inference_mode(), Looks() as looks:
        static._rounds.round()
    assert (looks.seen, looks.brought) == (0, 0)


def test_sampled_answers_and_chains_of_any_length_take_other_rounds() -> None:
    sampled = DecodingSettings(8, temperature=1.0, stop=())
    _, static = pair("hyper", trained=True)
    context = static.prefill(documents(2))
    assert all(len(answer) == 8 for answer in static.decode(context, sampled, torch.Generator().manual_seed(0)))
    static.speculation = SpeculationSettings(3, tree=TreeSettings(2, 4))
    static.decode(context, SETTINGS)
    assert static._rounds is None
