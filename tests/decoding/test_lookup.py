"""Proposals from the text itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyperbagel.bagel.segments import TextSegment
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.lookup import Branches, Lookup, LookupSettings, laid_over, worth_verifying
from hyperbagel.decoding.policies import Never
from hyperbagel.decoding.proposal import Proposal
from hyperbagel.decoding.speculative import DraftedContext, SpeculationSettings, Speculator
from hyperbagel.draft.phrases import count_phrases, save_phrases
from tests.decoding.drafting import SETTINGS, documents, draft, target


def paths(found: Branches) -> list[list[int]]:
    """The tokens up to each node, in order."""
    result: list[list[int]] = [[]]
    for token, parent in zip(found.tokens, found.parents, strict=True):
        result.append([*result[parent], token])
    return result[1:]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3, 4, 1, 2], [[3], [3, 4], [3, 4, 1], [3, 4, 1, 2]]),
        ([1, 2, 3, 1, 2, 4, 1, 2], [[4], [3], [4, 1], [3, 1], [4, 1, 2], [3, 1, 2]]),  # the last place first
        ([9, 1, 2, 3, 5, 1, 2, 4, 9, 1, 2], [[3], [3, 5], [3, 5, 1]]),  # but for a longer agreement
        ([5, 6, 5, 6], [[5], [5, 6], [5, 6, 5]]),  # a text that repeats itself goes on so
        ([1, 2, 3, 4, 5, 6], []),
        ([1, 2, 3, 4, 3, 2], []),  # not by one token alone
        ([1, 2, -1, 4, 1, 2], []),  # no tokens of pictures
        ([1, 2, 3, 8, 4, 1, 2], [[3]]),  # nothing behind an end
        ([1], []),
        ([], []),
    ],
)
def test_what_followed_before_is_proposed(text: list[int], expected: list[list[int]]) -> None:
    settings = LookupSettings(match=2, length=4, share=0.05)
    lookup = Lookup(settings, text)
    found = lookup.propose(most=4, stop={8})
    assert paths(found)[: len(expected)] == expected and bool(found) == bool(expected)
    assert found.chances == sorted(found.chances, reverse=True)
    step_by_step = Lookup(settings, [])
    for token in text:
        step_by_step.extend([token])
    assert step_by_step.propose(most=10, stop={8}) == found
    assert not lookup.propose(most=0, stop=())


def test_chances_are_those_of_the_longest_agreement_then_of_shorter_ones() -> None:
    """By hand. Of two tokens that agree once: (1 - 0.7^2) / 1.5 of the text; the rest by phrases: behind (1, 2) one
    time of four 3, less 3/4, and three times 4; by (2) alone 3 and 4 behind 1, and 5 behind 9."""
    phrases = count_phrases([[1, 2, 3], [1, 2, 4], [1, 2, 4], [1, 2, 4], [9, 2, 5]])
    settings = LookupSettings(match=2, length=1, share=0.01)
    found = Lookup(settings, [1, 2, 6, 1, 2], phrases).propose(most=8, stop=())
    own = 0.51 / 1.5
    by_two, by_one, rest = (0.25 / 4, 2.25 / 4, 0.0), (0.25 / 3, 0.25 / 3, 0.25 / 3), 1.5 / 4
    shares = {6: own} | {
        token: (1 - own) * (two + rest * one) for token, two, one in zip((3, 4, 5), by_two, by_one, strict=True)
    }
    expected = {token: share**1.5 for token, share in shares.items() if share**1.5 >= 0.01}
    assert dict(zip(found.tokens, found.chances, strict=True)) == pytest.approx(expected) and len(expected) == 3
    assert not Lookup(LookupSettings(match=2, share=0.5), [1, 2, 6, 1, 2], phrases).propose(most=8, stop=())
    chain = Lookup(LookupSettings(length=2, nodes=2), [1, 2], phrases).propose(most=8, stop={5})
    assert chain.tokens == [4, 3] and chain.parents == [0, 0], "nothing is known behind 4"


def test_a_drafts_tree_is_grown_on() -> None:
    """By hand: 1, 2 were followed by 3 and 4. The draft proposes 4, and 5 behind it; also 6, with nothing behind."""
    settings = LookupSettings(match=2, length=2, nodes=9, trust=0.75)
    lookup = Lookup(settings, [1, 2, 3, 4, 1, 2])
    drafted = Branches([4, 6, 5], [0, 0, 1], [0.5, 0.2, 0.4])
    assert drafted.children() == {0: {4: (1, 0.5), 6: (2, 0.2)}, 1: {5: (3, 0.8)}}
    own = (0.51 / 1.5) ** 1.5  # one token that stood behind two which agree
    three, four, six, five = 0.25 * own, 0.75 * 0.5, 0.75 * 0.2, 0.75 * 0.5 * 0.75 * 0.8
    sure = 0.657 / 1.5  # of three that agree; of the rest as two do
    behind_three = three * (sure + (1 - sure) * 0.51 / 1.5) ** 1.5  # of which the draft says nothing
    found = lookup.propose(most=8, stop=(), drafted=drafted)
    assert paths(found) == [[4], [4, 5], [6], [3], [3, 4]]
    assert found.chances == pytest.approx([four, five, six, three, behind_three])
    assert paths(lookup.propose(most=1, stop={6}, drafted=drafted)) == [[4], [3]]
    alone = Lookup(settings, []).propose(most=8, stop=(), drafted=drafted)
    assert paths(alone) == [[4], [4, 5], [6]], "what nothing is known of is the draft's alone"


def test_as_many_are_verified_as_are_worth_it() -> None:
    settings = LookupSettings(nodes=4, free=5, price=0.1)
    likely, unlikely = Branches([1] * 4, [0, 1, 2, 3], [0.9, 0.8, 0.7, 0.6]), Branches([1], [0], [0.1])
    assert worth_verifying([likely], settings) == 4
    assert worth_verifying([Branches([1] * 4, [0] * 4, [0.1] * 4)], settings) == 4, "four cost nothing"
    assert worth_verifying([unlikely] * 6, settings) == 0, "six documents' cost more than they bring"
    assert worth_verifying([likely, *[unlikely] * 5], settings) == 0
    # Four documents: 4 tokens a pass; then 7.6 for 1.4, 10.8 for 1.8 and 13.6 for 2.2 passes; 2.4 more for 0.4 is less.
    assert worth_verifying([likely] * 4, settings) == 3
    assert worth_verifying([likely] * 4, LookupSettings(nodes=4, price=0.3)) == 0
    assert worth_verifying([Branches()], settings) == 0


def test_answers_by_phrases_are_those_of_plain_decoding(tmp_path: Path) -> None:
    model, asked = target(), documents(12)
    expected = decode_text(model, model.prefill(asked), SETTINGS)
    path = tmp_path / "phrases.safetensors"
    save_phrases(count_phrases([[model.config.tokens.bos, *answer] for answer in expected]), path)
    lookup = LookupSettings(phrases=str(path), share=0.02, price=0)
    for policy, head in ((None, True), (Never(), True), (None, False)):
        settings = SpeculationSettings(2, lookup=lookup, policy=policy)
        speculator = Speculator(model, draft("hyper", trained=False) if head else None, settings)
        assert speculator.decode(speculator.prefill(asked), SETTINGS) == expected
        assert speculator.statistics.acceptance_length > 2, "what the model said is what it says"
        plain = speculator.without_draft()
        assert plain.decode(plain.prefill(asked), SETTINGS) == expected
        assert plain.statistics.acceptance_length == 1


def chain(*tokens: int) -> Branches:
    return Branches(list(tokens), list(range(len(tokens))), [0.9] * len(tokens))


def test_documents_have_what_was_found_or_the_drafts_chain() -> None:
    settings, nothing = LookupSettings(), Branches()
    drafted = Proposal(torch.tensor([[1, 2], [3, 4]]), steps=2)
    both = laid_over(drafted, [nothing, chain(7, 8, 9)], settings)
    assert both is not None and both.tokens.tolist() == [[1, 2, 0], [7, 8, 9]]
    assert both.parents is None and both.steps == 3, "what fills up a chain goes on with it"
    branched = laid_over(drafted, [nothing, Branches([7, 8, 9], [0, 0, 2], [0.9] * 3)], settings)
    assert branched is not None and branched.parents is not None and branched.depth is not None
    assert branched.tokens.tolist() == [[1, 2, 0], [7, 8, 9]] and branched.steps == 2
    assert branched.parents.tolist() == [[0, 1, 0], [0, 0, 2]] and branched.depth.tolist() == [[1, 2, 1], [1, 1, 2]]
    assert laid_over(drafted, [nothing, nothing], settings) is drafted and laid_over(drafted, [], settings) is drafted
    alone = laid_over(None, [chain(5, 6)], settings)
    assert alone is not None and alone.tokens.tolist() == [[5, 6]] and alone.parents is None and alone.steps == 2
    tree = laid_over(None, [Branches([5, 6, 7], [0, 0, 2], [0.5, 0.4, 0.3])], settings)
    assert tree is not None and tree.parents is not None and tree.parents.tolist() == [[0, 0, 2]] and tree.steps == 2
    assert laid_over(None, [Branches([5], [0], [0.05])] * 6, settings) is None, "not worth it"
    drawn = Proposal(torch.tensor([[1], [3]]), probabilities=torch.full((2, 1, 9), 1 / 9), steps=1)
    assert laid_over(drawn, [nothing, chain(7)], settings) is drawn


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


@pytest.mark.parametrize("settings", [{"match": 0}, {"length": 0}, {"nodes": 0}, {"share": 0.0}, {"price": -1.0}])
def test_impossible_lookups_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a lookup needs match"):
        LookupSettings(**settings)  # type: ignore[arg-type]
