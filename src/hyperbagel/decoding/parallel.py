"""A parallel draft head at work: one pass reads the true rows and proposes all tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperbagel.bagel.model import Bagel
from hyperbagel.decoding.autoregressive import next_token_probabilities
from hyperbagel.decoding.drafter import Drafter, last_rows
from hyperbagel.decoding.fused import RopeTable
from hyperbagel.decoding.proposal import Proposal, ProposalSettings
from hyperbagel.decoding.rows import DraftState, Rows
from hyperbagel.decoding.tree import grow_tree
from hyperbagel.decoding.verify import draw
from hyperbagel.draft.head import DraftHead


class ParallelDrafter(Drafter):
    """Runs a head of kind `parallel`: what it proposes for a place does not depend on what it proposes before."""

    def __init__(self, head: DraftHead, model: Bagel, fuse: bool) -> None:
        super().__init__(head, model, fuse)
        assert head.ahead_embedding is not None
        self.embedding: Tensor = head.ahead_embedding

    @property
    def longest(self) -> int | None:
        """Tokens that it can propose at most."""
        return self.head.config.ahead

    def propose(self, state: DraftState, rows: Rows, table: RopeTable, settings: ProposalSettings) -> Proposal | None:
        """Read true rows, and propose what follows on each document's last one; None where that is not worth it."""
        logits = self.logits(self.look_ahead(state, rows, table, settings.length))
        if settings.tree is not None:
            return grow_tree(_SharedLevels(logits), logits[:, 0], self.head, settings)
        return self._chain(logits, settings)

    def look_ahead(self, state: DraftState, rows: Rows, table: RopeTable, count: int) -> Tensor:
        """Add true rows to the caches; draft features (B, count, D) of the tokens after each document's last row."""
        new, more = rows.embedded.shape[1], count - 1
        mask = None if state.decoder is None else state.decoder.place(new)
        feature = self.features(state, rows, table.at(rows.position), mask)
        x = self.fuse(rows.embedded, feature)
        x = torch.cat([x, last_rows(x, rows.counts) + self.embedding[:more]], dim=1)
        further = last_rows(rows.position, rows.counts) + torch.arange(1, count, device=x.device)
        rope = table.at(torch.cat([rows.position, further], dim=1))
        mask = state.layers.place(new + more, inner=_inner(rows, more))
        hidden = self.stack(x, rope, mask, state.layers, tail=count if rows.even else None)
        self.commit(state, rows)
        return hidden if rows.even else torch.cat([last_rows(hidden[:, :new], rows.counts), hidden[:, new:]], dim=1)

    def _chain(self, logits: Tensor, settings: ProposalSettings) -> Proposal | None:
        """The likeliest tokens, or drawn ones, of logits (B, K, V'): as many as are worth it.

        Of drawn tokens, how many does not depend on them, but for a stop token, which is kept.
        """
        if settings.greedy:
            best, drawn = logits.float().log_softmax(-1).max(-1)
            probabilities = None
        else:
            q = next_token_probabilities(logits, settings.decoding)
            best, drawn = q.amax(-1).log(), draw(q, settings.generator)
            probabilities = self.widen(q)
        tokens = self.head.target_ids(drawn)
        steps = max(map(self._worth, tokens.tolist(), best.cumsum(-1).exp().tolist(), [settings] * len(tokens)))
        if not steps:
            return None
        return Proposal(tokens[:, :steps], None if probabilities is None else probabilities[:, :steps], steps=steps)

    def _worth(self, tokens: list[int], confidence: list[float], settings: ProposalSettings) -> int:
        """How many tokens of a document are worth a place in the verification."""
        for place, (token, sure) in enumerate(zip(tokens, confidence, strict=True)):
            if sure < settings.min_confidence:
                return place
            if token in settings.stop:
                return place + (not settings.greedy)
        return len(tokens)


class _SharedLevels:
    """A tree's levels by logits (B, K, V') that all nodes of a level share."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.level = logits, 0

    def expand(self, token: Tensor, parent: Tensor) -> Tensor:
        """Logits behind the nodes of the next level; see `Levels`."""
        self.level += 1
        return self.logits[:, self.level : self.level + 1].expand(-1, token.shape[1], -1)


def _inner(rows: Rows, more: int) -> Tensor | None:
    """Who sees whom among padded true rows and `more` places ahead of them; None: simply causal."""
    new = rows.embedded.shape[1]
    if rows.even:
        return None
    device = rows.position.device
    inner = torch.ones(new + more, new + more, dtype=torch.bool, device=device).tril()
    hidden = torch.arange(new, device=device) >= torch.tensor(rows.counts, device=device)[:, None]
    inner = inner.repeat(len(rows.counts), 1, 1)
    inner[:, new:, :new] &= ~hidden[:, None]
    return inner
