"""Greedy decoding whose rounds are all alike: buffers of fixed sizes, and every decision made on the device.

A round verifies a chain of proposals, keeps what was accepted and proposes the next chain, without the process looking
at any of it. So a GPU can replay it as one CUDA graph, where launching its thousand small operations one by one takes
longer than they do. The process looks once a round, at what was written. Answers are those of `DecodingRun`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.bagel.context import Context
from hyperbagel.bagel.transfer import moved
from hyperbagel.decoding.autoregressive import DecodingSettings, OnTokens, finite_rows, require_logits
from hyperbagel.decoding.cache import RowCache
from hyperbagel.decoding.contexts import DraftedContext
from hyperbagel.decoding.fused import RopeTable
from hyperbagel.decoding.rows import DraftMemory
from hyperbagel.decoding.speculative_loop import Engine

log = logging.getLogger(__name__)

CHAIN = 4
"""Longest chain of a round: all rounds have as long a one, whether the draft is sure or not."""

_GRAIN = 256
"""Buffers have a multiple of so many entries, so that answers after contexts of many lengths share them."""


class StaticCache:
    """Keys and values, (layers, B, kv_heads, capacity, head_dim), with the rows' lengths (B,) on the device.

    What is attended to is decided by a mask over all of it. Used as `RowCache`, but for counts that are tensors.
    """

    def __init__(self, like: RowCache, capacity: int) -> None:
        layers, batch, heads, _, width = like.keys.shape
        self.keys, self.values = (like.keys.new_zeros(layers, batch, heads, capacity, width) for _ in range(2))
        self.lengths = torch.zeros(batch, dtype=torch.long, device=like.keys.device)
        self._rows = torch.arange(batch, device=like.keys.device)[:, None]
        self._columns = torch.arange(capacity, device=like.keys.device)
        self._slots = self._rows

    def fill(self, cache: RowCache) -> None:
        """Start with the entries of another cache."""
        used = max(cache.lengths)
        self.keys[:, :, :, :used].copy_(cache.keys[:, :, :, :used])
        self.values[:, :, :, :used].copy_(cache.values[:, :, :, :used])
        self.lengths.copy_(moved(torch.tensor(cache.lengths), self.lengths.device))

    def place(self, new: int, ahead: int = 0) -> Tensor:
        """Say where the next pass writes, after `ahead` uncommitted tokens; its additive mask (B, 1, new, capacity)."""
        self._slots = self.lengths[:, None] + torch.arange(ahead, ahead + new, device=self.lengths.device)
        unseen = self._columns > self._slots[..., None]
        return torch.zeros_like(unseen, dtype=self.keys.dtype).masked_fill_(unseen, float("-inf"))[:, None]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, new, kv_heads, head_dim) at the place set; all of the layer."""
        self.keys[layer][self._rows, :, self._slots] = k
        self.values[layer][self._rows, :, self._slots] = v
        return self.keys[layer], self.values[layer]

    def commit(self, counts: Tensor) -> None:
        """Keep the first counts[b] of the tokens written after row b's entries. counts: (B,)."""
        self.lengths.add_(counts)


@dataclass(frozen=True)
class Shape:
    """What buffers are made for. batch: documents; capacity: entries of a cache; length: of chains."""

    batch: int
    capacity: int
    length: int


class StaticRounds:
    """The buffers and the rounds of one shape, for many answers one after another.

    root, position: (B, 1) last token of each answer and its rope position; proposals: (B, K); open: (B,) bool, whose
    answers go on; emitted: (B,) tokens so far; report: (B, K + 3) the target's choices, how many of them count, and
    whether all numbers were finite.
    """

    def __init__(self, engine: Engine, shape: Shape, settings: DecodingSettings) -> None:
        self.engine, self.shape, self.settings = engine, shape, settings
        model, batch = engine.model, shape.batch
        self.device, self.embed = model.device, model.understanding.embed_tokens.weight
        stop = (model.config.tokens.eos,) if settings.stop is None else settings.stop
        self.stop = torch.tensor(sorted(stop), dtype=torch.long, device=self.device)
        self.cache = StaticCache(engine.target.cache(batch, 1, self.embed), shape.capacity)
        self.layers: StaticCache | None = None
        self.decoder: StaticCache | None = None
        if engine.drafter is not None:
            empty = engine.drafter.empty_state(batch, 1)
            self.layers = StaticCache(empty.layers, shape.capacity)
            self.decoder = None if empty.decoder is None else StaticCache(empty.decoder, shape.capacity)
        self.table = RopeTable(model.config.llm, shape.capacity + shape.length + 1, self.embed)
        self.ahead = torch.arange(shape.length + 1, device=self.device)
        self.emitted = torch.zeros(batch, dtype=torch.long, device=self.device)
        self.root, self.position = (self.emitted.new_zeros(batch, 1) for _ in range(2))
        self.proposals = self.emitted.new_zeros(batch, shape.length)
        self.open = torch.ones(batch, dtype=torch.bool, device=self.device)
        self.report = self.emitted.new_zeros(batch, shape.length + 3)
        self._replay: Callable[[], object] | None = None

    def begin(self, context: Context, forced: Sequence[int]) -> None:
        """Take a context over, and propose the first chain. forced: what each answer begins with, bos first."""
        batch = self.shape.batch
        self.cache.fill(RowCache.of(context, 0))
        self.position.copy_(context.next_position[:, None])
        self.emitted.zero_()
        self.proposals.zero_()
        self.open.fill_(True)
        memory = context.draft if isinstance(context, DraftedContext) else None
        for own, theirs in zip((self.layers, self.decoder), self._read_before(memory), strict=True):
            if own is not None:
                own.lengths.zero_()
                if theirs is not None:
                    own.fill(theirs)
        ids = moved(torch.tensor([list(forced)] * batch), self.device)
        streams: list[Tensor] = []
        if len(forced) > 1:  # all but the last are read, and the draft head gets to know them
            streams = self._read(ids[:, :-1])
            self.cache.commit(torch.full_like(self.emitted, len(forced) - 1))
        self._get_to_know(memory, streams, ids)
        self.position.add_(len(forced) - 1)
        self.root.copy_(ids[:, -1:])

    def _read(self, ids: Tensor) -> list[Tensor]:
        """The residual streams of a pass of the target over ids (B, n) from `position` on."""
        streams = [F.embedding(ids, self.embed)]
        positions = self.position + torch.arange(ids.shape[1], device=self.device)
        mask = self.cache.place(ids.shape[1])
        self.engine.target(streams[0], self.table.at(positions), mask, self.cache, record=streams)
        return streams

    def _read_before(self, memory: DraftMemory | None) -> tuple[RowCache | None, RowCache | None]:
        """The draft head's caches of a context, of which it may have to read something now."""
        drafter = self.engine.drafter
        if drafter is None or memory is None:
            return None, None
        room = 0 if memory.unread is None else max(memory.unread.counts)
        batch = self.shape.batch
        state = drafter.empty_state(batch, room) if memory.state is None else memory.state.copy(room)
        if memory.unread is not None:
            drafter.follow(state, memory.unread, self.table)
        return state.layers, state.decoder

    def _get_to_know(self, memory: DraftMemory | None, streams: list[Tensor], ids: Tensor) -> None:
        """Show the draft head what stands before the root, whose token follows on it, and propose."""
        drafter = self.engine.drafter
        if drafter is None or not (streams or memory):
            return
        features = {entry: streams[entry] for entry in drafter.entries} if streams else {}
        following = F.embedding(ids[:, 1:], self.embed)
        position = self.position + torch.arange(ids.shape[1] - 1, device=self.device)
        if memory is not None:
            features = {
                entry: torch.cat([waiting, features[entry]], 1) if streams else waiting
                for entry, waiting in memory.pending.items()
            }
            following = torch.cat([F.embedding(ids[:, :1], self.embed), following], 1)
            position = torch.cat([memory.position, position], 1)
        counts = torch.full_like(self.emitted, following.shape[1])
        self._propose((features, following, position), counts, counts)

    def _propose(self, rows: tuple[dict[int, Tensor], Tensor, Tensor], counts: Tensor, kept: Tensor) -> None:
        """Add true rows to the draft head's caches, as `Drafter.follow`, and propose a chain after each last one.

        rows: features, embeddings of the tokens that follow and rope positions; counts, kept: (B,) how many there are,
        and how many of them stay.
        """
        drafter, layers = self.engine.drafter, self.layers
        assert drafter is not None and layers is not None
        features, following, position = rows
        rope, mask = self.table.at(position), layers.place(following.shape[1])
        x = drafter.head.features.combine(features, drafter.queries)
        if drafter.decoder is not None and self.decoder is not None:
            self.decoder.place(following.shape[1])
            x = drafter.decoder(x, rope, mask, self.decoder)
        feature = drafter.fc1(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        hidden = drafter.step(following, feature, rope, mask, layers)
        layers.commit(kept)
        if self.decoder is not None:
            self.decoder.commit(kept)
        last = (counts - 1)[:, None]
        hidden = hidden.gather(1, last[..., None].expand(-1, -1, hidden.shape[-1]))
        position = position.gather(1, last)
        for i in range(self.shape.length):
            if i:
                embedded = F.embedding(self.proposals[:, i - 1 : i], self.embed)
                hidden = drafter.step(embedded, hidden, self.table.at(position + i), layers.place(1, i - 1), layers)
            self.proposals[:, i : i + 1] = drafter.head.target_ids(drafter.logits(hidden).argmax(-1))

    def round(self) -> None:
        """Verify, keep, propose; everything stays on the device."""
        ids = torch.cat([self.root, self.proposals], 1)
        streams = self._read(ids)
        logits = self.engine.logits(streams[-1])
        chosen = logits.argmax(-1)
        accepted = (chosen[:, :-1] == self.proposals).long().cumprod(1).sum(1)
        counts = accepted + 1
        number = self.emitted[:, None] + 1 + self.ahead
        ends = (chosen[..., None] == self.stop).any(-1) | (number >= self.settings.max_tokens)
        ended = (ends & (self.ahead < counts[:, None])).any(1)
        self.report.copy_(torch.cat([chosen, counts[:, None], finite_rows(logits)[:, None].long()], 1))
        self.open.logical_and_(~ended)
        kept = counts * self.open
        self.cache.commit(kept)
        if self.engine.drafter is not None:
            features = {entry: streams[entry] for entry in self.engine.drafter.entries}
            self._propose((features, F.embedding(chosen, self.embed), self.position + self.ahead), counts, kept)
        self.root.copy_(chosen.gather(1, accepted[:, None]))
        self.position.add_(kept[:, None])
        self.emitted.add_(counts)

    def advance(self) -> list[list[int]]:
        """One round; what it wrote, see `report`. On a GPU the first one is computed, and all others replay it."""
        if self._replay is not None:
            self._replay()
        else:
            self.round()
        written: list[list[int]] = self.report.tolist()
        if self._replay is None and self.device.type == "cuda":
            self._replay = self._recorded()
        return written

    def _recorded(self) -> Callable[[], object]:
        """A round as a CUDA graph; where none can be made, the round itself, and a warning."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):  # records without computing
                self.round()
        except RuntimeError as error:
            log.warning("rounds of decoding are not replayed, as they cannot be recorded here: %s", error)
            return self.round
        return graph.replay


def can_be_static(engine: Engine) -> bool:
    """Whether rounds can be all alike: plain ones, or of chains that are drafted token by token."""
    drafter, speculation = engine.drafter, engine.speculation
    if speculation.lookup is not None:
        return False
    return drafter is None or (drafter.longest is None and speculation.tree is None)


def rounds_for(
    engine: Engine, context: Context, settings: DecodingSettings, forced: int, known: StaticRounds | None = None
) -> StaticRounds:
    """Rounds for answers after a context that begin with so many forced tokens: known ones, if they have its shape."""
    length = 0 if engine.drafter is None else min(engine.speculation.length, CHAIN)
    needed = context.length + forced + settings.max_tokens + length + 1
    shape = Shape(context.batch_size, -(-needed // _GRAIN) * _GRAIN, length)
    if known is None or (known.shape, known.settings) != (shape, settings):
        return StaticRounds(engine, shape, settings)
    known.engine = engine
    return known


def decode_static(
    rounds: StaticRounds, context: Context, forced: Sequence[int], on_tokens: OnTokens | None = None
) -> list[list[int]]:
    """Greedy answers of a context's documents, as `DecodingRun.answer` writes them."""
    rounds.begin(context, forced)
    batch, longest, limit = rounds.shape.batch, rounds.shape.length, rounds.settings.max_tokens
    statistics, stop = rounds.engine.statistics, set(rounds.stop.tolist())
    answers: list[list[int]] = [[] for _ in range(batch)]
    going = set(range(batch))
    while going:
        written = rounds.advance()
        finite = torch.tensor([row[-1] for row in written])
        require_logits(finite, {row: row for row in going}, batch, rounds.engine.model)
        new: list[list[int]] = [[] for _ in range(batch)]
        for row in sorted(going):
            count = written[row][-2]
            for token in written[row][:count]:
                new[row].append(token)
                if token not in stop:
                    answers[row].append(token)
                if token in stop or len(answers[row]) == limit:
                    going.discard(row)
                    break
            accepted = min(len(new[row]), count - 1)
            statistics.add(len(new[row]), accepted, longest if accepted == count - 1 else accepted)
        for i in range(max(map(len, new)) if on_tokens is not None else 0):
            assert on_tokens is not None
            on_tokens(torch.tensor([row[i] if i < len(row) else -1 for row in new]))
    return answers
