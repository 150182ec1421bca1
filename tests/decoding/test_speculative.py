"""Speculative decoding: greedy answers are those of plain decoding, whatever is proposed and however it is batched."""

from __future__ import annotations

from collections import deque
from typing import Literal

import pytest
import torch
from torch import Tensor

from hyperbagel.bagel.segments import TextSegment
from hyperbagel.decoding.adaptive import Adaptive
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.cache import RowCache
from hyperbagel.decoding.fused import FusedStack, RopeTable
from hyperbagel.decoding.lookup import LookupSettings
from hyperbagel.decoding.proposal import Proposal, ProposalSettings, TreeSettings
from hyperbagel.decoding.queue import AnswerQueue, Request
from hyperbagel.decoding.speculative import DraftedContext, SpeculationSettings, Speculator, decode_speculative
from hyperbagel.decoding.speculative_loop import DecodingRun, Verdict
from hyperbagel.decoding.statistics import Origin, SpeculationStatistics
from hyperbagel.decoding.tree import grow_tree, tree_mask
from hyperbagel.decoding.verify import walk
from hyperbagel.draft.batch import extract_features
from hyperbagel.draft.unroll import unroll
from tests.decoding.drafting import CONFIG, COSTS, SETTINGS, documents, draft, target

WAYS = {
    "chain": SpeculationSettings(4),
    "confident": SpeculationSettings(6, min_confidence=0.3),
    "adaptive": SpeculationSettings(6, policy=Adaptive(2, COSTS)),
    "tree": SpeculationSettings(3, tree=TreeSettings(width=3, nodes=8)),
    "looked up": SpeculationSettings(3, lookup=LookupSettings(match=1, length=6)),
    "looked up tree": SpeculationSettings(3, tree=TreeSettings(width=3, nodes=8), lookup=LookupSettings(match=1)),
    "adaptive tree": SpeculationSettings(3, tree=TreeSettings(width=3, nodes=8), policy=Adaptive(1, COSTS)),
}

HEADS = [
    ("hyper", False, False),
    ("hyper", True, False),
    ("hyper", True, True),
    ("eagle3", True, False),
    ("parallel", True, False),
]
CASES = [
    *((kind, trained, reduced, way) for kind, trained, reduced in HEADS for way in ("chain", "confident", "tree")),
    ("hyper", True, False, "adaptive"),
    ("hyper", True, False, "adaptive tree"),
    ("hyper", True, True, "looked up"),
    ("hyper", True, False, "looked up tree"),
    ("parallel", True, False, "looked up"),
    ("parallel", True, False, "adaptive"),
    ("parallel", True, True, "chain"),
]


@pytest.mark.parametrize(("kind", "trained", "reduced", "way"), CASES)
def test_greedy_answers_are_those_of_plain_decoding(kind: str, trained: bool, reduced: bool, way: str) -> None:
    model, head = target(), draft(kind, trained, reduced)
    speculator = Speculator(model, head, WAYS[way])
    asked = documents(8)
    for batch in ([asked[0]], asked[4:]):
        plain = model.prefill(batch)
        expected = decode_text(model, plain, SETTINGS)
        context = speculator.prefill(batch)
        assert isinstance(context, DraftedContext)
        assert speculator.decode(context, SETTINGS) == expected
        assert speculator.decode(context, SETTINGS) == expected, "decoding changed its context"
        # A context that the draft does not know only makes it slower.
        assert speculator.decode(plain, SETTINGS) == expected
        prefixed = decode_text(model, plain, SETTINGS, prefix=(11, 12, 13))
        assert speculator.decode(context, SETTINGS, prefix=(11, 12, 13)) == prefixed
        assert decode_speculative(model, head, plain, SETTINGS, prefix=(11, 12, 13)) == prefixed
    if trained and not reduced and way in ("chain", "tree"):
        assert speculator.statistics.acceptance_length > 1.25, "nothing was accepted, so little was tested"
        assert min(speculator.statistics.n_alpha[:1]) < 1


@pytest.mark.parametrize("fuse", [True, False])
def test_without_a_draft_it_is_plain_decoding(fuse: bool) -> None:
    model = target()
    batch = documents(4)
    drafting = Speculator(model, draft("hyper", trained=True), fuse=fuse)
    for speculator in (Speculator(model, fuse=fuse), drafting.without_draft()):
        answers = speculator.decode(speculator.prefill(batch), SETTINGS)
        assert answers == decode_text(model, model.prefill(batch), SETTINGS)
        assert speculator.statistics.acceptance_length == 1.0 and speculator.statistics.n_alpha == []
    assert drafting.drafter is not None and not drafting.statistics.passes


def test_further_documents_continue_a_drafted_context() -> None:
    """A second turn behind a first, prefilled in two goes: the draft has seen the same rows as in one go."""
    model, head = target(), draft("hyper", trained=True)
    speculator = Speculator(model, head, WAYS["chain"])
    first, second = documents(4), [[TextSegment(torch.tensor([20 + i] * (1 + i % 2)))] for i in range(4)]
    whole = speculator.prefill([[*a, *b] for a, b in zip(first, second, strict=True)])
    parts = speculator.prefill(second, speculator.prefill(first))
    assert isinstance(whole, DraftedContext) and isinstance(parts, DraftedContext)
    expected = decode_text(model, model.prefill(second, model.prefill(first)), SETTINGS)
    for again in range(2):
        assert speculator.decode(parts, SETTINGS) == speculator.decode(whole, SETTINGS) == expected, again
    one, other = whole.draft, parts.draft
    assert one.state is not None and other.state is not None and one.unread is other.unread is None
    assert one.state.layers.lengths == other.state.layers.lengths
    for row, length in enumerate(one.state.layers.lengths):
        for cache, same in ((one.state.layers, other.state.layers), (one.state.decoder, other.state.decoder)):
            assert cache is not None and same is not None
            torch.testing.assert_close(
                cache.keys[:, row, :, :length], same.keys[:, row, :, :length], atol=1e-4, rtol=1e-3
            )
    torch.testing.assert_close(one.position, other.position)


def test_true_rows_replace_drafted_ones() -> None:
    """After any number of rounds the draft goes on as from one pass over the finished text: true features only, at the
    right positions."""
    model, head = target(), draft("hyper", trained=True)
    batch = documents(1)
    speculator = Speculator(model, head, WAYS["chain"])
    context = speculator.prefill(batch)
    settings = DecodingSettings(max_tokens=12, stop=())
    states = []
    follow = speculator.drafter.follow  # type: ignore[union-attr]

    def watched(state, rows, table):  # type: ignore[no-untyped-def]
        result = follow(state, rows, table)
        states.append((state.layers.lengths[0], state.layers.keys[:, 0].clone(), result.clone()))
        return result

    speculator.drafter.follow = watched  # type: ignore[union-attr,method-assign]
    answer = speculator.decode(context, settings)[0]
    full = [[*batch[0], TextSegment(torch.tensor(answer), loss=True)]]
    features = extract_features(model, full, head.config.entries(CONFIG.llm))
    with torch.no_grad():
        step = next(unroll(head, features, 1))
    first = int((features.labels[0] != -100).nonzero()[0]) - 1  # row of the first counting step
    assert len(states) > 2
    for length, _, hidden in states:
        torch.testing.assert_close(hidden[0, 0], step.hidden[length - 1 - first], atol=1e-4, rtol=1e-3)


def test_tokens_are_reported_in_order_and_limits_hold() -> None:
    model, head = target(), draft("hyper", trained=True)
    speculator = Speculator(model, head, WAYS["chain"])
    batch = documents(4)
    context = speculator.prefill(batch)
    for limit in (1, 2, 5, 11):
        settings = DecodingSettings(max_tokens=limit, stop=(7,))
        seen: list[list[int]] = [[] for _ in batch]

        def note(tokens: torch.Tensor, seen: list[list[int]] = seen) -> None:
            for row, token in zip(seen, tokens.tolist(), strict=True):
                row += [token] if token not in (-1, 7) else []

        answers = speculator.decode(context, settings, on_tokens=note)
        assert answers == seen == decode_text(model, context, settings)
        assert max(map(len, answers)) <= limit


@pytest.mark.parametrize("kind", ["hyper", "parallel"])
def test_documents_that_take_different_numbers_of_tokens_leave_each_other_alone(
    monkeypatch: pytest.MonkeyPatch, kind: Literal["hyper", "parallel"]
) -> None:
    """The first document accepts whatever is proposed, so it soon leaves; the others take a token a round."""
    judge = DecodingRun._judge

    def partial(self: DecodingRun, logits: torch.Tensor, proposal: Proposal | None) -> tuple[list, list]:  # type: ignore[type-arg]
        _, chosen = judge(self, logits, None)
        whole = [document == 0 for document in self.documents]
        paths = [list(range(len(row))) if all_ else [0] for row, all_ in zip(chosen, whole, strict=True)]
        return paths, [row[: len(path)] for row, path in zip(chosen, paths, strict=True)]

    model, batch, settings = target(), documents(4)[::-1], DecodingSettings(max_tokens=13, stop=())
    expected = decode_text(model, model.prefill(batch), settings)
    speculator = Speculator(model, draft(kind, trained=True), SpeculationSettings(5))
    monkeypatch.setattr(DecodingRun, "_judge", partial)
    answers = speculator.decode(speculator.prefill(batch), settings)
    assert answers[1:] == expected[1:] and len(answers[0]) == 13


def test_finished_documents_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[int, int]] = []
    verify = DecodingRun._verify

    def watched(self: DecodingRun, proposal: Proposal | None) -> Verdict:
        passes.append((self.cache.batch_size, len(self.answers)))
        return verify(self, proposal)

    monkeypatch.setattr(DecodingRun, "_verify", watched)
    speculator = Speculator(target(), draft("hyper", trained=True), SpeculationSettings(3))
    asked = documents(12)
    answers = speculator.decode(speculator.prefill(asked), SETTINGS)
    assert len(set(map(len, answers))) > 1, "answers are too much alike to show much"
    assert all(rows == going for rows, going in passes)
    assert passes[0][0] == 12 and passes[-1][0] < 12
    alone = [speculator.decode(speculator.prefill([document]), SETTINGS)[0] for document in asked]
    assert answers == alone


def test_the_draft_reads_nothing_until_something_is_drafted() -> None:
    """An answer that ends with its first tokens costs no pass of the draft head; a longer one is drafted."""
    speculator = Speculator(target(), draft("hyper", trained=True), SpeculationSettings(4, policy=Adaptive(3, COSTS)))
    batch = documents(1)
    context = speculator.prefill(batch)
    assert isinstance(context, DraftedContext)
    for limit, read in ((3, False), (12, True)):
        speculator.decode(context, DecodingSettings(limit, stop=()))
        assert (context.draft.state is not None) == read == (context.draft.unread is None)
    assert speculator.statistics.proposed


def test_fused_layers_compute_what_the_model_computes() -> None:
    model = target()
    layout = model.layout(documents(2, seed=5)[1:])
    recorded = model.run(layout, record_layers=True)
    x = recorded.layers[0].und
    length = x.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    assert bool((layout.und.mask()[0, 0] == causal).all()), "the document has to be text for this comparison"
    table = RopeTable(CONFIG.llm, length, x)
    for fuse in (True, False):
        stack = FusedStack(list(model.understanding.layers), CONFIG.llm, fuse)
        cache = stack.cache(1, length, x)
        streams: list[torch.Tensor] = []
        with torch.no_grad():
            stack(x, table.at(layout.und.position), cache.place(length), cache, record=streams)
        for stream, expected in zip(streams, recorded.layers[1:], strict=True):
            torch.testing.assert_close(stream, expected.und, atol=1e-5, rtol=1e-4)


def test_row_caches_keep_only_what_is_committed() -> None:
    cache = RowCache.empty((1, 2, 1, 8, 1), torch.zeros(1))
    values = torch.arange(1.0, 7.0).view(2, 3, 1, 1)
    assert cache.place(3) is not None
    cache.extend(0, values, values)
    cache.commit([3, 1])
    mask = cache.place(2)
    keys, _ = cache.extend(0, 10 * values[:, :2], 10 * values[:, :2])
    assert keys[:, 0, :, 0].tolist() == [[1, 2, 3, 10, 20], [4, 40, 50, 0, 0]]
    assert mask is not None and (mask[:, 0] == 0).long().tolist() == [
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
        [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]],
    ]
    cache.gather(1, [0, 1])
    cache.commit([0, 2])
    assert cache.lengths == [3, 3]
    with pytest.raises(ValueError, match="room for 8 tokens, 9 are needed"):
        cache.place(6)


def test_a_document_alone_sees_nothing_that_was_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caches begin with whatever is in memory; here with what is no number."""

    def room(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return like.new_full(shape, float("nan") if shape[1] == 1 else 0.0)

    model, asked = target(), documents(6)
    expected = [decode_text(model, model.prefill([document]), SETTINGS)[0] for document in asked]
    monkeypatch.setattr("hyperbagel.decoding.cache._buffer", room)
    for kind, way in (("hyper", "chain"), ("hyper", "tree"), ("parallel", "adaptive")):
        speculator = Speculator(model, draft(kind, trained=True), WAYS[way])  # type: ignore[arg-type]
        assert [speculator.decode(speculator.prefill([document]), SETTINGS)[0] for document in asked] == expected
        queue = AnswerQueue(speculator, SETTINGS, 2)  # those that come one by one join others
        requests = deque(Request(document, mark=i) for i, document in enumerate(asked))
        found = {request.mark: answer for request, answer in queue.answer(requests)}
        assert [found[i] for i in range(len(asked))] == expected


def test_a_proposed_token_costs_half_a_product_and_is_the_same() -> None:
    """Of a small vocabulary, what fc2 makes of the tokens is known beforehand."""
    drafter = Speculator(target(), draft("hyper", trained=True)).drafter
    assert drafter is not None and drafter.halves is not None
    ids, feature = torch.tensor([[11], [30]]), torch.randn(2, 1, CONFIG.llm.hidden_size)
    rope = RopeTable(CONFIG.llm, 4, feature).at(torch.tensor([[3], [3]]))
    results = []
    with torch.inference_mode():
        for halves in (drafter.halves, None):
            drafter.halves, layers = halves, drafter.empty_state(2, 4).layers
            results.append(drafter.go_on(ids, feature, rope, layers.place(1), layers))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_a_tree_knows_how_likely_its_paths_are() -> None:
    def logits(*shares: float) -> Tensor:
        """Of tokens 3, 4, ... of 64."""
        found = torch.full((64,), -1e9)
        found[3 : 3 + len(shares)] = torch.tensor(shares).log()
        return found

    class Same:
        """Every node is followed by 3 or 4."""

        def expand(self, token: Tensor, parent: Tensor) -> Tensor:
            return logits(0.7, 0.2, 0.1).expand(1, token.shape[1], -1)

    settings = ProposalSettings(2, 0.0, {4}, SETTINGS, None, TreeSettings(width=2, nodes=6))
    grown = grow_tree(Same(), logits(0.6, 0.1, 0.3)[None], draft("hyper", trained=False), settings)
    assert grown.parents is not None and grown.chances is not None
    assert grown.tokens.tolist() == [[3, 5, 3, 4, 3, 4]] and grown.parents.tolist() == [[0, 0, 1, 1, 2, 2]]
    torch.testing.assert_close(grown.chances, torch.tensor([[0.6, 0.3, 0.42, 0.0, 0.21, 0.0]]), atol=1e-6, rtol=0)


def test_paths_follow_the_target_through_a_tree() -> None:
    # root -> 1 (5), 2 (6); 1 -> 3 (5); 2 -> 4 (8), 5 (9); 5 -> 6 (1)
    tokens, parents = [5, 6, 5, 8, 9, 1], [0, 0, 1, 2, 2, 5]
    assert walk(tokens, parents, [6, 0, 9, 0, 0, 1, 3]) == [0, 2, 5, 6]
    assert walk(tokens, parents, [6, 0, 7, 0, 0, 1, 3]) == [0, 2]
    assert walk(tokens, parents, [4] * 7) == [0]
    seen = tree_mask(torch.tensor([parents]), 3)[0].long().tolist()
    assert seen[6] == [1, 0, 1, 0, 0, 1, 1] and seen[3] == [1, 1, 0, 1, 0, 0, 0] and seen[0] == [1] + [0] * 6


def test_statistics_by_hand() -> None:
    """Chains of 3: all accepted, one accepted, none accepted."""
    statistics = SpeculationStatistics()
    for accepted in (3, 1, 0):
        statistics.add(emitted=accepted + 1, accepted=accepted, proposed=3)
    assert statistics.acceptance_length == pytest.approx((4 + 2 + 1) / 3)
    assert statistics.proposed == [3, 2, 1] and statistics.n_alpha == pytest.approx([2 / 3, 1 / 2, 1.0])
    assert statistics.mean_alpha == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    other = SpeculationStatistics()
    other.add(emitted=5, accepted=4, proposed=4)
    statistics.merge(other)
    assert statistics.proposed == [4, 3, 2, 1] and statistics.tokens == 12


def test_the_draft_is_marked_where_it_was_accepted() -> None:
    """All but each pass's last token are its own."""
    statistics = SpeculationStatistics()
    origin, marks = Origin(statistics), []
    for emitted, accepted in ((3, 2), (1, 0), (4, 3), (2, 2)):
        statistics.add(emitted, accepted, 6)
        marks += [origin.drafted() for _ in range(emitted)]
    assert marks == [True, True, False, False, True, True, True, False, True, True]


@pytest.mark.parametrize("kind", ["hyper", "parallel"])
@pytest.mark.parametrize("least", [0.0, 1e-9])
def test_nothing_is_proposed_behind_the_end_of_an_answer(
    monkeypatch: pytest.MonkeyPatch, kind: Literal["hyper", "parallel"], least: float
) -> None:
    """Greedy chains leave out the stop token too, which the target adds unasked."""
    speculator = Speculator(target(), draft(kind, trained=True), SpeculationSettings(5, least))
    chains = []
    propose = speculator.drafter.propose

    def recorded(*args: object) -> Proposal | None:
        chains.append(propose(*args))
        return chains[-1]

    monkeypatch.setattr(speculator.drafter, "propose", recorded)
    for document in documents(40):
        speculator.decode(speculator.prefill([document]), SETTINGS)
    proposed = [[] if chain is None else chain.tokens[0].tolist() for chain in chains]
    assert any(len(chain) < 5 for chain in proposed)
    assert not {token for chain in proposed for token in chain} & set(SETTINGS.stop or ())


@pytest.mark.parametrize(
    "options",
    [
        {"length": 0},
        {"min_confidence": 1.0},
        {"min_confidence": 0.5, "tree": TreeSettings()},
        {"min_confidence": 0.5, "policy": Adaptive()},
    ],
)
def test_impossible_settings_are_refused(options: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match="min_confidence"):
        SpeculationSettings(**options)
