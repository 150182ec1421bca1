"""Proposals from the text itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyperbagel.bagel.segments import TextSegment
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.lookup import Lookup, LookupSettings, laid_over
from hyperbagel.decoding.policies import Never
from hyperbagel.decoding.proposal import Proposal
from hyperbagel.decoding.speculative import DraftedContext, SpeculationSettings, Speculator
from hyperbagel.draft.phrases import count_phrases, save_phrases
from tests.decoding.drafting import SETTINGS, documents, draft, target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3, 4, 1, 2], [3, 4, 1, 2]),
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2, 4]),  # the last place counts
        ([9, 1, 2, 3, 5, 1, 2, 4, 9, 1, 2], [3, 5, 1, 2]),  # but for a longer agreement
        ([5, 6, 5, 6], [5, 6, 5, 6]),  # a text that repeats itself goes on so
        ([1, 2, 3, 4, 5, 6], []),
        ([1, 2, 3, 4, 3, 2], []),  # not by one token alone
        ([1, 2, -1, 4, 1, 2], []),  # no tokens of pictures
        ([1, 2, 3, 8, 4, 1, 2], [3]),  # nothing behind an end
        ([1], []),
        ([], []),
    ],
)
def test_what_followed_before_is_proposed(text: list[int], expected: list[int]) -> None:
    lookup = Lookup(LookupSettings(match=2, length=4), text)
    assert lookup.propose(most=4, stop={8}) == expected[:4]
    step_by_step = Lookup(LookupSettings(match=2, length=4), [])
    for token in text:
        step_by_step.extend([token])
    assert step_by_step.propose(most=4, stop={8}) == lookup.propose(most=10, stop={8})
    assert lookup.propose(most=0, stop=()) == []


def test_phrases_are_proposed_where_the_text_has_nothing() -> None:
    phrases = count_phrases([[1, 2, 3, 4]] * 9 + [[5, 8, 1]])
    settings = LookupSettings(match=2, length=4, share=0.5)
    assert Lookup(settings, [7, 1, 2], phrases).propose(most=8, stop={4}) == [3]
    assert Lookup(settings, [1, 2, 6, 1, 2], phrases).propose(most=2, stop={4}) == [6, 1], "the text itself comes first"
    assert Lookup(settings, [5], phrases).propose(most=2, stop=()) == [8], "the second token is too unlikely"
    assert not Lookup(settings, [7, 1, 2]).propose(most=8, stop=())


def test_answers_by_phrases_are_those_of_plain_decoding(tmp_path: Path) -> None:
    model, asked = target(), documents(12)
    expected = decode_text(model, model.prefill(asked), SETTINGS)
    path = tmp_path / "phrases.safetensors"
    save_phrases(count_phrases([[model.config.tokens.bos, *answer] for answer in expected]), path)
    lookup = LookupSettings(phrases=str(path), share=0.1)
    for policy, head in ((None, True), (Never(), True), (None, False)):
        settings = SpeculationSettings(2, lookup=lookup, policy=policy)
        speculator = Speculator(model, draft("hyper", trained=False) if head else None, settings)
        assert speculator.decode(speculator.prefill(asked), SETTINGS) == expected
        assert speculator.statistics.acceptance_length > 2, "what the model said is what it says"
        plain = speculator.without_draft()
        assert plain.decode(plain.prefill(asked), SETTINGS) == expected
        assert plain.statistics.acceptance_length == 1


def test_documents_have_what_was_found_or_the_drafts_chain() -> None:
    drafted = Proposal(torch.tensor([[1, 2], [3, 4]]), steps=2)
    both = laid_over(drafted, [[], [7, 8, 9]])
    assert both is not None and both.tokens[:, :3].tolist() == [[1, 2, 0], [7, 8, 9]] and both.steps == 3
    assert laid_over(drafted, [[], []]) is drafted and laid_over(drafted, []) is drafted
    alone = laid_over(None, [[5], []])
    assert alone is not None and alone.tokens.tolist() == [[5], [0]]
    # As long as half of the documents have tokens for.
    few = laid_over(None, [[5, 6, 7], [], [8, 9], [4]])
    assert few is not None and few.tokens.tolist() == [[5, 6], [0, 0], [8, 9], [4, 0]] and few.steps == 2
    assert laid_over(None, [[5], [], []]) is None
    drawn = Proposal(torch.tensor([[1], [3]]), probabilities=torch.full((2, 1, 9), 1 / 9), steps=1)
    assert laid_over(drawn, [[], [7]]) is drawn


def test_texts_that_repeat_themselves_need_fewer_passes_and_no_draft() -> None:
    """The target loops sooner or later; the draft head is not asked where the text tells how it goes on."""
    model, settings = target(), DecodingSettings(max_tokens=120, stop=())
    document = [TextSegment(torch.tensor([11, 12, 13, 11, 12]))]
    expected = decode_text(model, model.prefill([document]), settings)
    passes = []
    for lookup in (None, LookupSettings(match=3, length=10)):
        speculator = Speculator(model, draft("hyper", trained=False), SpeculationSettings(2, lookup=lookup))
        context = speculator.prefill([document])
        assert isinstance(context, DraftedContext) and len(context.text[0]) == 7
        assert speculator.decode(context, settings) == expected
        passes.append(speculator.statistics.passes)
    assert passes[1] < 0.7 * passes[0], passes


def test_a_further_turn_is_looked_up_in_all_turns_before() -> None:
    speculator = Speculator(target(), draft("hyper", trained=False), SpeculationSettings(2, lookup=LookupSettings()))
    first = speculator.prefill([[TextSegment(torch.tensor([21, 22]))], [TextSegment(torch.tensor([23]))]])
    second = speculator.prefill([[TextSegment(torch.tensor([24]))], [TextSegment(torch.tensor([25, 26]))]], first)
    bos, eos = target().config.tokens.bos, target().config.tokens.eos
    assert isinstance(second, DraftedContext)
    assert second.text == [[bos, 21, 22, eos, bos, 24, eos], [bos, 23, eos, bos, 25, 26, eos]]


@pytest.mark.parametrize("settings", [{"match": 0}, {"length": 0}, {"share": 0.0}])
def test_impossible_lookups_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="match >= 1"):
        LookupSettings(**settings)  # type: ignore[arg-type]
