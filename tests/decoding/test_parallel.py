"""A parallel head at work: one pass proposes what its places ahead say, as they were trained."""

from __future__ import annotations

import pytest
import torch

from hyperbagel.bagel.segments import TextSegment
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.parallel import ParallelDrafter
from hyperbagel.decoding.speculative import SpeculationSettings, Speculator
from hyperbagel.draft.batch import extract_features
from hyperbagel.draft.unroll import unroll
from tests.decoding.drafting import AHEAD, CONFIG, documents, draft, target


def test_all_places_are_those_of_training_after_any_number_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    model, head = target(), draft("parallel", trained=True)
    seen = []
    look = ParallelDrafter.look_ahead

    def watched(self: ParallelDrafter, state, rows, table, count):  # type: ignore[no-untyped-def]
        ahead = look(self, state, rows, table, count)
        seen.append((state.layers.lengths[0], ahead))
        return ahead

    monkeypatch.setattr(ParallelDrafter, "look_ahead", watched)
    batch, settings = documents(1), DecodingSettings(max_tokens=14, stop=())
    speculator = Speculator(model, head, SpeculationSettings(AHEAD))
    answer = speculator.decode(speculator.prefill(batch), settings)[0]
    assert speculator.statistics.acceptance_length > 1.1
    features = extract_features(
        model, [[*batch[0], TextSegment(torch.tensor(answer), loss=True)]], head.config.entries(CONFIG.llm)
    )
    first = int((features.labels[0] != -100).nonzero()[0]) - 1  # row of the first counting step
    compared = 0
    with torch.no_grad():
        for step in unroll(head, features, AHEAD):
            for length, ahead in seen:
                place = length - 1 - first
                if place in (rows := step.row.tolist()) and step.number < ahead.shape[1]:
                    expected = step.hidden[rows.index(place)]
                    torch.testing.assert_close(ahead[0, step.number], expected, atol=1e-4, rtol=1e-3)
                    compared += 1
    assert len(seen) > 2 and compared > 10


def test_a_longer_chain_begins_as_a_shorter_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the length may be decided anew in every round; and never is it more than was trained."""
    proposed: dict[int, list[int]] = {}
    for length in (2, AHEAD, AHEAD + 4):
        speculator = Speculator(target(), draft("parallel", trained=True), SpeculationSettings(length))
        propose = ParallelDrafter.propose

        def recorded(self: ParallelDrafter, *args: object, length: int = length) -> object:
            proposal = propose(self, *args)  # type: ignore[arg-type]  # noqa: B023
            proposed.setdefault(length, proposal.tokens[0].tolist())  # type: ignore[union-attr]
            return proposal

        with monkeypatch.context() as patch:
            patch.setattr(ParallelDrafter, "propose", recorded)
            speculator.decode(speculator.prefill(documents(1)), DecodingSettings(24, stop=()))
    assert proposed[2] == proposed[AHEAD][:2] and len(proposed[AHEAD]) == AHEAD
    assert proposed[AHEAD + 4] == proposed[AHEAD]


def test_documents_of_different_lengths_do_not_see_each_others_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    first: list[list[int]] = []
    propose = ParallelDrafter.propose

    def recorded(self: ParallelDrafter, *args: object) -> object:
        proposal = propose(self, *args)  # type: ignore[arg-type]
        first.extend(proposal.tokens.tolist())  # type: ignore[union-attr]
        return proposal

    monkeypatch.setattr(ParallelDrafter, "propose", recorded)
    asked, once = documents(6), DecodingSettings(AHEAD + 1, stop=())
    speculator = Speculator(target(), draft("parallel", trained=True), SpeculationSettings(AHEAD))
    alone = []
    for document in asked:
        speculator.decode(speculator.prefill([document]), once)
        alone.append(first[0])
        first.clear()
    speculator.decode(speculator.prefill(asked), once)
    assert first[:6] == alone
