"""A draft head at work: its caches, its input features, chains and trees of proposals."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.quantized import is_plain
from hyperbagel.decoding.autoregressive import next_token_probabilities
from hyperbagel.decoding.cache import Entries
from hyperbagel.decoding.fused import FusedStack, LogitsHead, Norm, Projection, Rope, RopeTable
from hyperbagel.decoding.proposal import Proposal, ProposalSettings, stack_chain
from hyperbagel.decoding.rows import DraftState, Rows
from hyperbagel.decoding.tree import grow_tree
from hyperbagel.decoding.verify import draw
from hyperbagel.draft.head import DraftHead, Fusion

_FOLDED = 2**22
"""Most numbers of a table of all tokens, as `Drafter` keeps one: more would fit into no cache of a processor."""


class Drafter:
    """Runs a draft head over caches, one token after another. A snapshot of its weights: build it anew after training
    on.

    Where the processor multiplies in bfloat16, large weights in float32 are rounded to it. Proposals may then be others
    at times; answers are the target's in any case.
    """

    def __init__(self, head: DraftHead, model: Bagel, fuse: bool) -> None:
        self.head = head
        self.embed = model.understanding.embed_tokens.weight
        self.stack = FusedStack(list(head.layers), head.llm, fuse, half=True)
        self.logits = LogitsHead(Norm(head.norm.weight, head.llm.rms_norm_eps), head.lm_head, fuse, half=True)
        intermediate, fusion = head.features, head.fusion
        with torch.no_grad():
            self.fc1 = Projection([intermediate.fc1], fuse, half=True)
            self.fc2 = None if fusion is None else Projection([fusion.fc2], fuse, half=True)
        self.norm = None if fusion is None else Norm(fusion.norm.weight, head.llm.rms_norm_eps)
        self.halves = self._halves(fusion) if fuse and fusion is not None else None
        self.entries = head.config.entries(head.llm)
        self.decoder: FusedStack | None = None
        if intermediate.decoder is not None:
            self.decoder = FusedStack([intermediate.decoder], intermediate.decoder_config, fuse, half=True)
        self.queries = None
        if intermediate.attention is not None:
            with torch.no_grad():
                self.queries = intermediate.attention.folded_queries()

    @torch.no_grad()
    def _halves(self, fusion: Fusion) -> tuple[Tensor, Tensor] | None:
        """fc2 of the embeddings of all tokens, (V, D), and its other half, (D, D), for the features, which spares a
        draft step a norm and half of a product. None where that is more than `_FOLDED` numbers."""
        assert self.norm is not None
        weight, width = fusion.fc2.weight, self.embed.shape[1]
        if self.embed.numel() > _FOLDED or not is_plain(weight):
            return None
        return self.norm(self.embed) @ weight[:, :width].t(), weight[:, width:].t().contiguous()

    @property
    def longest(self) -> int | None:
        """Tokens that it can propose at most; None: any number."""
        return None

    def empty_state(self, batch: int, capacity: int) -> DraftState:
        """Caches without a context."""
        decoder = None if self.decoder is None else self.decoder.cache(batch, capacity, self.embed)
        return DraftState(self.stack.cache(batch, capacity, self.embed), decoder)

    def propose(self, state: DraftState, rows: Rows, table: RopeTable, settings: ProposalSettings) -> Proposal | None:
        """Read true rows, and propose what follows on each document's last one; None where that is not worth it."""
        hidden = self.follow(state, rows, table)
        position = last_rows(rows.position, rows.counts)
        if settings.tree is None:
            return self.chain(state, hidden, position, table, settings)
        steps = _TreeSteps(self, state, (hidden, position), table)
        return grow_tree(steps, self.logits(hidden)[:, 0], self.head, settings)

    def follow(self, state: DraftState, rows: Rows, table: RopeTable) -> Tensor:
        """Add true rows to the caches; the draft feature (B, 1, D) of each document's last row."""
        rope = table.at(rows.position)
        mask = state.layers.place(rows.embedded.shape[1])
        feature = self.features(state, rows, rope, mask)
        hidden = self.step(rows.embedded, feature, rope, mask, state.layers, 1 if rows.even else None)
        self.commit(state, rows)
        return hidden if rows.even else last_rows(hidden, rows.counts)

    def features(self, state: DraftState, rows: Rows, rope: Rope, mask: Tensor | None) -> Tensor:
        """Input features (B, n, D) of true rows. mask: causal, as a cache gives it."""
        x = self.head.features.combine(rows.features, self.queries)
        if self.decoder is not None and state.decoder is not None:
            state.decoder.place(x.shape[1], masked=False)
            x = self.decoder(x, rope, mask, state.decoder)
        return self.fc1(x.flatten(0, 1)).view(*x.shape[:2], -1)

    def commit(self, state: DraftState, rows: Rows) -> None:
        """Keep the rows that were just read."""
        state.layers.commit(rows.counts)
        if state.decoder is not None:
            state.decoder.commit(rows.counts)

    def fuse(self, embedded: Tensor, feature: Tensor) -> Tensor:
        """What enters the first layer of a Hyper-Bagel head, (B, n, D) of both."""
        assert self.fc2 is not None and self.norm is not None
        pair = torch.cat([self.norm(embedded), feature], dim=-1)
        return self.fc2(pair.flatten(0, 1)).view_as(feature)

    def step(
        self,
        embedded: Tensor,
        feature: Tensor,
        rope: Rope,
        mask: Tensor | None,
        cache: Entries,
        tail: int | None = None,
    ) -> Tensor:
        """One draft step for rows (B, n, D), written where the cache was told to: the features for the next.

        tail: as of `FusedStack`.
        """
        if self.fc2 is None:
            return self.stack(feature, rope, mask, cache, torch.cat([embedded, feature], dim=-1), tail=tail)
        return self.stack(self.fuse(embedded, feature), rope, mask, cache, tail=tail)

    def go_on(self, ids: Tensor, feature: Tensor, rope: Rope, mask: Tensor | None, cache: Entries) -> Tensor:
        """`step` for proposed tokens (B, n) of the target's vocabulary."""
        if self.halves is None:
            return self.step(F.embedding(ids, self.embed), feature, rope, mask, cache)
        embedded, weight = self.halves
        x = torch.addmm(embedded[ids.flatten()], feature.flatten(0, 1), weight)
        return self.stack(x.view_as(feature), rope, mask, cache)

    def chain(
        self, state: DraftState, hidden: Tensor, position: Tensor, table: RopeTable, settings: ProposalSettings
    ) -> Proposal | None:
        """Propose one token after another. hidden: (B, 1, D) of the last true row, position: (B, 1) of it.

        A greedy chain ends before the token that would end the last open answer: the target says that one itself,
        without being asked. None if nothing is left.
        """
        tokens: list[Tensor] = []
        probabilities: list[Tensor] = []
        # Whether to go on depends on what was proposed so far, never on a drawn token that is then left out: that would
        # bend the distribution.
        confidence = [1.0] * len(hidden)
        whole = table.at(position + torch.arange(settings.length, device=position.device))
        ropes = [Rope(*pair) for pair in zip(whole.cos.split(1, 1), whole.sin.split(1, 1), strict=True)]
        for i in range(settings.length):
            if i:
                mask = state.layers.place(1, ahead=i - 1)
                hidden = self.go_on(tokens[-1], hidden, ropes[i], mask, state.layers)
            logits = self.logits(hidden)
            token, sure = self._pick(logits, settings, probabilities)
            ids = self.head.target_ids(token)
            goes_on = [number not in settings.stop for (number,) in ids.tolist()]
            confidence = [c * on for c, on in zip(confidence, goes_on, strict=True)]
            if not any(confidence) and settings.greedy:
                break
            tokens.append(ids)
            if settings.min_confidence > 0 and i + 1 < settings.length:
                confidence = [c * s for c, (s,) in zip(confidence, sure.tolist(), strict=True)]
            if max(confidence) <= 0 or max(confidence) < settings.min_confidence:
                break
        return stack_chain(tokens, probabilities)

    def _pick(self, logits: Tensor, settings: ProposalSettings, probabilities: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Tokens of the draft's vocabulary and their probabilities at temperature 1, each (B, 1). What they were drawn
        from is added to `probabilities`."""
        own = logits.float().softmax(-1)
        if settings.greedy:
            sure, token = own.max(-1)
            return token, sure
        q = next_token_probabilities(logits, settings.decoding)
        probabilities.append(self.widen(q))
        token = draw(q, settings.generator)
        return token, own.gather(-1, token[..., None])[..., 0]

    def widen(self, q: Tensor) -> Tensor:
        """Probabilities over the draft's vocabulary (..., V') to the target's (..., V)."""
        if self.head.vocabulary is None:
            return q
        wide = q.new_zeros(*q.shape[:-1], self.head.llm.vocab_size)
        wide[..., self.head.vocabulary] = q
        return wide


class _TreeSteps:
    """The draft steps of a tree's levels: a node sees the true rows, its ancestors and itself.

    start: feature (B, 1, D) and rope position (B, 1) of the last true row.
    """

    def __init__(self, drafter: Drafter, state: DraftState, start: tuple[Tensor, Tensor], table: RopeTable) -> None:
        self.drafter, self.state, self.table = drafter, state, table
        self.hidden, self.position = start
        self.level = 0
        self.ancestors: Tensor | None = None

    def expand(self, token: Tensor, parent: Tensor) -> Tensor:
        """Logits behind the nodes of the next level; see `Levels`."""
        width, index = token.shape[1], parent[..., None]
        self.level += 1
        own = torch.eye(width, dtype=torch.bool, device=token.device).expand(len(token), -1, -1)
        if self.ancestors is None:
            hidden, ancestors = self.hidden.expand(-1, width, -1), own[:, :, :0]
        else:
            hidden = self.hidden.gather(1, index.expand(-1, -1, self.hidden.shape[-1]))
            ancestors = self.ancestors.gather(1, index.expand(-1, -1, self.ancestors.shape[-1]))
        ahead = ancestors.shape[-1]
        self.ancestors = torch.cat([ancestors, own], dim=-1)
        mask = self.state.layers.place(width, ahead, self.ancestors)
        rope = self.table.at((self.position + self.level).expand(-1, width))
        embedded = F.embedding(token, self.drafter.embed)
        self.hidden = self.drafter.step(embedded, hidden, rope, mask, self.state.layers)
        return self.drafter.logits(self.hidden)


def last_rows(values: Tensor, counts: list[int]) -> Tensor:
    """Of values (B, n, ...) the last of each document's first `counts`: (B, 1, ...)."""
    last = [count - 1 for count in counts]
    if last.count(last[0]) == len(last):
        return values[:, last[0] : last[0] + 1]
    return values[torch.arange(len(last)), last][:, None]
