"""Text decoding: the same tokens as without a cache, whatever else is in the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperbagel.bagel.context import DecodeCache
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, TextSegment
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text, next_token_probabilities, pick_token
from tests.bagel.tiny import CONFIG, Maker, mixed_documents, tiny_model

ENDLESS = DecodingSettings(max_tokens=8, stop=())


@pytest.fixture(scope="module")
def model() -> Bagel:
    return tiny_model()


@torch.no_grad()
def greedy_without_cache(model: Bagel, document: Document, tokens: int) -> list[int]:
    """Every token from a forward over everything; the answer is a text block whose eos is not looked at."""
    answer: list[int] = []
    for _ in range(tokens):
        layout = model.layout([[*document, TextSegment(torch.tensor(answer, dtype=torch.long))]])
        stream = model.run(layout).streams.und[0, -2]
        answer.append(int(model.next_logits(stream).argmax()))
    return answer


def test_greedy_answers_of_a_mixed_batch_are_those_without_cache(model: Bagel) -> None:
    documents = mixed_documents()
    answers = decode_text(model, model.prefill(documents), ENDLESS)
    assert len({tuple(answer) for answer in answers}) > 1
    for document, answer in zip(documents, answers, strict=True):
        assert answer == greedy_without_cache(model, document, 8)


@torch.no_grad()
def test_logits_do_not_depend_on_the_batch_or_on_how_many_tokens_are_fed(model: Bagel) -> None:
    documents = mixed_documents()
    ids = torch.randint(5, 60, (len(documents), 6), generator=Maker().generator)
    caches = [DecodeCache(model.prefill(documents), 6) for _ in range(2)]
    at_once = model.decode(ids, caches[0]).streams.und
    pieces = torch.cat([model.decode(part, caches[1]).streams.und for part in ids.split([1, 3, 2], dim=1)], 1)
    torch.testing.assert_close(pieces, at_once, atol=1e-5, rtol=1e-5)
    for i, document in enumerate(documents):
        alone = model.decode(ids[i : i + 1], DecodeCache(model.prefill([document]), 6)).streams.und
        torch.testing.assert_close(at_once[i], alone[0], atol=1e-5, rtol=1e-5)


def test_answers_end_at_a_stop_token_and_others_go_on(model: Bagel) -> None:
    documents = mixed_documents()
    context = model.prefill(documents)
    free = decode_text(model, context, ENDLESS)
    stop = free[0][3]
    stopped = decode_text(model, context, DecodingSettings(max_tokens=8, stop=(stop, 9999)))
    assert stopped == [answer[: answer.index(stop)] if stop in answer else answer for answer in free]
    assert stopped[0] != free[0]
    calls: list[Tensor] = []
    alone = decode_text(
        model, model.prefill(documents[:1]), DecodingSettings(max_tokens=8, stop=(stop,)), on_tokens=calls.append
    )
    assert len(calls) == len(alone[0]) + 1  # decoding ends with the last open answer


def test_the_end_of_text_is_the_stop_token(model: Bagel) -> None:
    always_eos = tiny_model()
    with torch.no_grad():
        bias = always_eos.understanding.lm_head.weight
        stream = always_eos.decode(torch.tensor([[1]]), DecodeCache(always_eos.prefill([[]]), 1)).streams.und[0, -1]
        bias[CONFIG.tokens.eos] = 100 * always_eos.understanding.norm(stream)
    assert decode_text(always_eos, always_eos.prefill([[]])) == [[]]
    assert decode_text(always_eos, always_eos.prefill([[]]), ENDLESS)[0][0] == CONFIG.tokens.eos


def test_a_prefix_is_part_of_the_answer_but_not_of_the_result(model: Bagel) -> None:
    context = model.prefill(mixed_documents())
    free = decode_text(model, context, ENDLESS)
    row = 3
    rest = decode_text(model, context.rows(torch.tensor([row])), ENDLESS, prefix=free[row][:4])
    assert rest[0][:4] == free[row][4:]


def test_prefilled_answers_continue_where_decoding_stopped(model: Bagel) -> None:
    """A decoded text that is appended as a block leads to the context of the whole conversation."""
    make = Maker(2)
    question, follow_up = make.text(4), make.text(3)
    context = model.prefill([[question]])
    answer = TextSegment(torch.tensor(decode_text(model, context, ENDLESS)[0]))
    turn = decode_text(model, model.prefill([[answer, follow_up]], context), ENDLESS)
    assert turn[0] == greedy_without_cache(model, [question, answer, follow_up], 8)


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).log_softmax(-1)
    settings = DecodingSettings(temperature=0.7, top_p=0.9)
    probabilities = next_token_probabilities(logits, settings)
    draws = pick_token(logits.expand(20_000, -1), settings, torch.Generator().manual_seed(0))
    frequencies = draws.bincount(minlength=4) / len(draws)
    torch.testing.assert_close(frequencies, probabilities, atol=0.01, rtol=0)
    assert probabilities[3] == 0


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.3, [0]), (0.5, [0]), (0.51, [0, 2]), (0.8, [0, 2]), (0.81, [0, 2, 1]), (1.0, [0, 1, 2, 3])],
)
def test_the_nucleus_is_the_smallest_set_with_the_mass(top_p: float, kept: list[int]) -> None:
    original = torch.tensor([0.5, 0.15, 0.3, 0.05])
    got = next_token_probabilities(original.log(), DecodingSettings(temperature=1.0, top_p=top_p))
    expected = torch.zeros(4)
    expected[kept] = original[kept] / original[kept].sum()
    torch.testing.assert_close(got, expected)


def test_temperature_sharpens_until_greedy() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5], [3.0, 0.0, 2.9]])
    entropies = []
    for temperature in (2.0, 1.0, 0.5, 0.01):
        p = next_token_probabilities(logits, DecodingSettings(temperature=temperature))
        torch.testing.assert_close(p.sum(-1), torch.ones(2))
        entropies.append(float(-(p * p.clamp(min=1e-30).log()).sum()))
    assert entropies == sorted(entropies, reverse=True)
    greedy = next_token_probabilities(logits, DecodingSettings())
    torch.testing.assert_close(greedy, torch.tensor([[0.0, 1, 0], [1, 0, 0]]))
    assert pick_token(logits, DecodingSettings()).tolist() == [1, 0]


def test_sampled_answers_repeat_with_the_seed(model: Bagel) -> None:
    context, settings = model.prefill(mixed_documents()), DecodingSettings(8, 1.5, 0.95, stop=())
    first, again, other = (
        decode_text(model, context, settings, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first == again != other


@torch.no_grad()
def test_the_cache_refuses_more_than_it_has_room_for(model: Bagel) -> None:
    cache = DecodeCache(model.prefill([[Maker().text(3)]]), 3)
    model.decode(torch.tensor([[5, 6]]), cache)
    with pytest.raises(ValueError, match="has room for 8 tokens, 9 are needed"):
        model.decode(torch.tensor([[7, 8]]), cache)
    model.decode(torch.tensor([[7]]), cache)


@torch.no_grad()
def test_tokens_can_be_taken_back(model: Bagel) -> None:
    context = model.prefill(mixed_documents())
    ids = torch.randint(5, 60, (context.batch_size, 5), generator=Maker().generator)
    cache = DecodeCache(context, 5)
    first = model.decode(ids, cache).streams.und
    cache.advance(-3)
    torch.testing.assert_close(model.decode(ids[:, 2:], cache).streams.und, first[:, 2:], atol=1e-5, rtol=1e-5)
    assert not torch.is_inference(context.past.keys)


@pytest.mark.parametrize("settings", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_impossible_settings_are_refused(settings) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        DecodingSettings(**settings)
