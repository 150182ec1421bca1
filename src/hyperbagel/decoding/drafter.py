"""A draft head at work: its caches, its input features, chains and trees of proposals."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.bagel.model import Bagel
from hyperbagel.decoding.autoregressive import DecodingSettings, next_token_probabilities
from hyperbagel.decoding.cache import RowCache
from hyperbagel.decoding.fused import FusedStack, LogitsHead, Norm, Projection, Rope, RopeTable
from hyperbagel.draft.head import DraftHead


@dataclass(frozen=True)
class DraftState:
    """What a draft head keeps of a context.

    layers: keys and values of its decoder layers; decoder: those of `Dec`, if it has one; pending: the last token's
    features by entry, each (B, 1, D), whose row waits for the token that follows; position: (B, 1) rope position of it.
    """

    layers: RowCache
    decoder: RowCache | None
    pending: dict[int, Tensor]
    position: Tensor

    def copy(self, room: int) -> DraftState:
        """The same state with room for that many more tokens."""
        decoder = None if self.decoder is None else self.decoder.copy(room)
        return replace(self, layers=self.layers.copy(room), decoder=decoder)


@dataclass
class Rows:
    """True rows that the draft has not seen yet, padded on the right.

    features: entry -> (B, n, D); embedded: (B, n, D) the tokens that follow; position: (B, n) rope positions;
    counts: how many rows each document has, at least 1; frozen: numbers of documents whose rows are not to be kept.
    """

    features: dict[int, Tensor]
    embedded: Tensor
    position: Tensor
    counts: list[int]
    frozen: Collection[int] = ()


@dataclass
class Proposal:
    """Proposed tokens. tokens: (B, M) ids of the target; probabilities: (B, M, V) what they were drawn from, None for
    fixed proposals; parents: (B, M) node numbers, the root being 0, or None for a chain; depth: (B, M), likewise."""

    tokens: Tensor
    probabilities: Tensor | None = None
    parents: Tensor | None = None
    depth: Tensor | None = None


@dataclass(frozen=True)
class ChainSettings:
    """How a chain is proposed. length: tokens; min_confidence: go on only while the product of their draft
    probabilities is at least this (of the most confident document whose answer goes on); stop: ids (S,) that end an
    answer; decoding: temperature and top-p; generator: of the draws.
    """

    length: int
    min_confidence: float
    stop: Tensor
    decoding: DecodingSettings
    generator: torch.Generator | None


class Drafter:
    """Runs a draft head over caches. A snapshot of its weights: build it anew after training on."""

    def __init__(self, head: DraftHead, model: Bagel, fuse: bool) -> None:
        self.head = head
        self.embed = model.understanding.embed_tokens.weight
        self.stack = FusedStack(list(head.layers), head.llm, fuse)
        self.logits = LogitsHead(Norm(head.norm.weight, head.llm.rms_norm_eps), head.lm_head, fuse)
        intermediate, fusion = head.features, head.fusion
        with torch.no_grad():
            self.fc1 = Projection([intermediate.fc1], fuse)
            self.fc2 = None if fusion is None else Projection([fusion.fc2], fuse)
        self.norm = None if fusion is None else Norm(fusion.norm.weight, head.llm.rms_norm_eps)
        self.entries = head.config.entries(head.llm)
        self.decoder: FusedStack | None = None
        if intermediate.decoder is not None:
            self.decoder = FusedStack([intermediate.decoder], intermediate.decoder_config, fuse)
        self.queries = None
        if intermediate.attention is not None:
            with torch.no_grad():
                self.queries = intermediate.attention.folded_queries()

    def empty_state(self, batch: int, capacity: int) -> DraftState:
        """Caches without a context."""
        decoder = None if self.decoder is None else self.decoder.cache(batch, capacity, self.embed)
        return DraftState(self.stack.cache(batch, capacity, self.embed), decoder, {}, torch.empty(0))

    def follow(self, state: DraftState, rows: Rows, table: RopeTable) -> Tensor:
        """Add true rows to the caches; the draft feature (B, 1, D) of each document's last row."""
        new = rows.embedded.shape[1]
        rope = table.at(rows.position)
        mask = state.layers.place(new)
        x = self.head.features.combine(rows.features, self.queries)
        if self.decoder is not None and state.decoder is not None:
            state.decoder.place(new, masked=False)
            x = self.decoder(x, rope, mask, state.decoder)
        feature = self.fc1(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        hidden = self.step(rows.embedded, feature, rope, mask, state.layers)
        kept = [0 if row in rows.frozen else count for row, count in enumerate(rows.counts)]
        state.layers.commit(kept)
        if state.decoder is not None:
            state.decoder.commit(kept)
        last = [count - 1 for count in rows.counts]
        if last.count(last[0]) == len(last):
            return hidden[:, last[0] : last[0] + 1]
        return hidden[torch.arange(len(last)), last][:, None]

    def step(self, embedded: Tensor, feature: Tensor, rope: Rope, mask: Tensor | None, cache: RowCache) -> Tensor:
        """One draft step for rows (B, n, D), written where the cache was told to: the features for the next."""
        if self.fc2 is None or self.norm is None:
            return self.stack(feature, rope, mask, cache, read=torch.cat([embedded, feature], dim=-1))
        pair = torch.cat([self.norm(embedded), feature], dim=-1)
        x = self.fc2(pair.flatten(0, 1)).unflatten(0, feature.shape[:2])
        return self.stack(x, rope, mask, cache)

    def chain(
        self, state: DraftState, hidden: Tensor, position: Tensor, table: RopeTable, settings: ChainSettings
    ) -> Proposal:
        """Propose one token after another. hidden: (B, 1, D) of the last true row, position: (B, 1) of it."""
        tokens: list[Tensor] = []
        probabilities: list[Tensor] = []
        confidence: Tensor | None = None
        for i in range(settings.length):
            if i:
                mask = state.layers.place(1, ahead=i - 1)
                rope = table.at(position + i)
                hidden = self.step(F.embedding(tokens[-1], self.embed), hidden, rope, mask, state.layers)
            logits = self.logits(hidden)
            if settings.decoding.temperature == 0:
                token = logits.argmax(-1)
            else:
                q = next_token_probabilities(logits, settings.decoding)
                token = torch.multinomial(q[:, 0], 1, generator=settings.generator)
                probabilities.append(self._widen(q))
            tokens.append(self.head.target_ids(token))
            if settings.min_confidence > 0 and i + 1 < settings.length:
                # Whether to go on depends on what was proposed so far, never on a token that is then left out: that
                # would bend the distribution.
                step = logits.float().softmax(-1).gather(-1, token[..., None])[..., 0]
                step = step.masked_fill(torch.isin(tokens[-1], settings.stop), 0)
                confidence = step if confidence is None else confidence * step
                if float(confidence.max()) < settings.min_confidence:
                    break
        return Proposal(torch.cat(tokens, 1), torch.cat(probabilities, 1) if probabilities else None)

    def _widen(self, q: Tensor) -> Tensor:
        """Probabilities over the draft's vocabulary (..., V') to the target's (..., V)."""
        if self.head.vocabulary is None:
            return q
        wide = q.new_zeros(*q.shape[:-1], self.head.llm.vocab_size)
        wide[..., self.head.vocabulary] = q
        return wide
