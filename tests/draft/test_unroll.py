"""Training-time test: which rows count, what they are compared with, and what they attend to."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from hyperbagel.bagel.build.assemble import NANO
from hyperbagel.bagel.layout import IGNORED
from hyperbagel.bagel.mot import attend
from hyperbagel.bagel.segments import LatentSegment, TextSegment, ViTSegment
from hyperbagel.draft.batch import FeatureBatch, chain_rows, extract_features
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead
from hyperbagel.draft.unroll import unroll
from tests.nano import nano_bagel

CONFIG = dataclasses.replace(NANO, llm=dataclasses.replace(NANO.llm, num_hidden_layers=4, vocab_size=64))
STEPS = 3


def documents() -> list[list[object]]:
    """A picture with two turns; text behind a clean latent; of different lengths."""
    generator = torch.Generator().manual_seed(3)

    def text(length: int, loss: bool = False) -> TextSegment:
        return TextSegment(torch.randint(5, 64, (length,), generator=generator), loss)

    picture = ViTSegment(torch.rand(3, 16, 24, generator=generator))
    latent = LatentSegment(torch.randn(4, 4, 4, generator=generator), loss=True)
    return [[picture, text(3), text(4, True), text(2), text(2, True)], [text(3), latent, text(5, True)]]


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    return nano_bagel(CONFIG)


@pytest.fixture(scope="module")
def batch(model) -> FeatureBatch:  # type: ignore[no-untyped-def]
    return extract_features(model, documents(), DraftConfig().entries(CONFIG.llm), ("a", "b"))


def test_features_are_in_document_order_with_shared_image_positions(model, batch: FeatureBatch) -> None:  # type: ignore[no-untyped-def]
    assert sorted(batch.layers) == [0, 1, 2, 3, 4]
    image = 2 * 3 + 2  # 8-pixel patches of 16 x 24, and two markers
    assert batch.position[0].tolist()[: image + 5] == [0] * image + [1, 2, 3, 4, 5]
    # The latent takes one position; its own tokens are not among the rows.
    assert batch.position[1].tolist()[:14] == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12]
    ids = documents()[1][0].ids  # type: ignore[attr-defined]
    torch.testing.assert_close(batch.embedded[1, 1:4], model.understanding.embed_tokens(ids))


def test_rows_move_with_the_targets_and_stay_in_one_answer() -> None:
    x = IGNORED
    labels = torch.tensor([[x, x, 1, 2, 3, x, x, 4, x, x]])
    expected = [
        [0, 1, 1, 1, 0, 0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    rows = chain_rows(labels, 4)
    assert rows[:, 0].long().tolist() == expected
    # A mask that is not shifted would count the last position of an answer, whose target is the next question.
    assert not rows[1][0, 3]


def naive(head: DraftHead, batch: FeatureBatch, row: tuple[int, int], steps: int) -> list[Tensor]:
    """The draft's features of one row, step by step as decoding computes them: true rows, then its own."""
    b, t = row
    embedded, position = batch.embedded[b : b + 1], batch.position[b : b + 1]
    features = {entry: value[b : b + 1, : t + 1] for entry, value in batch.layers.items()}
    causal = torch.ones(t + 1, t + 1, dtype=torch.bool).tril()[None, None]
    rope = head.rope(position[:, : t + 1])
    feature = head.features(features, rope, causal)
    kept: list[tuple[Tensor, Tensor]] = []
    results: list[Tensor] = []
    for i in range(steps):
        if i == 0:
            x, read = head.fuse(embedded[:, 1 : t + 2], feature)
            start = x[:, -1:]
        else:
            rope = head.rope(position[:, t : t + 1] + i)
            x, read = head.later(i, start, embedded[:, t + 1 + i : t + 2 + i], results[-1])
        for number, layer in enumerate(head.layers):
            q, k, v = layer.input(read if number == 0 else x, rope)
            if i:
                k, v = torch.cat([kept[number][0], k], 2), torch.cat([kept[number][1], v], 2)
                kept[number] = (k, v)
            else:
                kept.append((k, v))
            x = layer.output(x, attend(q, k, v, causal if i == 0 else None))
        results.append(x[:, -1:])
    return [result[0, 0] for result in results]


@pytest.mark.parametrize(
    "config",
    [
        DraftConfig(zero_init=False),
        DraftConfig(kind="eagle3", layers=2),
        DraftConfig(kind="parallel", ahead=STEPS, zero_init=False),
    ],
)
def test_unrolling_is_what_decoding_does_row_by_row(model, batch: FeatureBatch, config: DraftConfig) -> None:  # type: ignore[no-untyped-def]
    """One softmax over true keys up to the row and the row's own later keys, in every layer; positions advance."""
    head = DraftHead.from_target(config, model)
    counts = chain_rows(batch.labels, STEPS)
    rows = counts[0].nonzero().tolist()
    seen = 0
    with torch.no_grad():
        steps = list(unroll(head, batch, STEPS))
        assert [step.number for step in steps] == [0, 1, 2]
        for step in steps:
            assert len(step.row) == int(counts[step.number].sum())
            for number, hidden, target in zip(step.row.tolist(), step.hidden, step.target, strict=True):
                b, t = rows[number]
                assert bool(counts[step.number][b, t])
                expected = naive(head, batch, (b, t), step.number + 1)[-1]
                torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-3)
                # Row t combines feature t with token t + 1 and is about the target's prediction at t + 1.
                torch.testing.assert_close(target, batch.final[b, t + 1 + step.number])
                seen += 1
    assert seen == int(counts.sum()) and seen > 25


def test_padding_and_neighbours_change_nothing(model, batch: FeatureBatch) -> None:  # type: ignore[no-untyped-def]
    head = DraftHead.from_target(DraftConfig(zero_init=False), model)
    alone = extract_features(model, documents()[1:], DraftConfig().entries(CONFIG.llm))
    with torch.no_grad():
        for together, single in zip(unroll(head, batch, STEPS), unroll(head, alone, STEPS), strict=True):
            count = len(single.row)
            torch.testing.assert_close(together.hidden[-count:], single.hidden, atol=1e-5, rtol=1e-4)


def test_nothing_to_draft_yields_nothing(model) -> None:  # type: ignore[no-untyped-def]
    question = extract_features(model, [[TextSegment(torch.tensor([5, 6]))]], (2,))
    assert list(unroll(DraftHead.from_target(DraftConfig(), model), question, 2)) == []


def test_places_ahead_of_a_parallel_head_do_not_depend_on_what_is_proposed(model, batch: FeatureBatch) -> None:  # type: ignore[no-untyped-def]
    """Other tokens between a row and its place ahead change nothing, in contrast to a head that reads them."""
    for kind, same in (("parallel", True), ("hyper", False)):
        head = DraftHead.from_target(DraftConfig(kind=kind, ahead=STEPS, zero_init=False), model)  # type: ignore[arg-type]
        row = int(chain_rows(batch.labels, STEPS)[-1][0].nonzero()[0])
        layers = {entry: value.clone() for entry, value in batch.layers.items()}
        layers[0][0, row + 2 : row + 4] += 1.0
        other = dataclasses.replace(batch, layers=layers)
        with torch.no_grad():
            steps = [list(unroll(head, b, STEPS))[-1].hidden[0] for b in (batch, other)]
        assert torch.equal(*steps) == same, kind
