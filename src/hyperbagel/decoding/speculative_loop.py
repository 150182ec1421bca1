"""The loop of speculative decoding: propose tokens, verify them, keep what was accepted."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.bagel.context import Context
from hyperbagel.bagel.model import Bagel
from hyperbagel.decoding.autoregressive import (
    DecodingSettings,
    OnTokens,
    finite_rows,
    next_token_probabilities,
    require_logits,
)
from hyperbagel.decoding.cache import RowCache
from hyperbagel.decoding.drafter import ChainSettings, Drafter, DraftState, Proposal, Rows
from hyperbagel.decoding.fused import FusedStack, LogitsHead, RopeTable
from hyperbagel.decoding.statistics import SpeculationStatistics
from hyperbagel.decoding.tree import TreeSettings, grow_tree, tree_mask
from hyperbagel.decoding.verify import draw, sample_chain, walk


@dataclass(frozen=True)
class SpeculationSettings:
    """How tokens are proposed."""

    length: int = 6
    """Draft steps per round: the length of a chain or the depth of a tree."""
    min_confidence: float = 0.0
    """End a chain early, with the answer or when the product of its draft probabilities falls below this (0: never)."""
    tree: TreeSettings | None = None
    """Propose this tree instead of a chain."""

    def __post_init__(self) -> None:
        if self.length < 1 or not 0 <= self.min_confidence < 1:
            raise ValueError(f"need length >= 1 and 0 <= min_confidence < 1, got {self}")
        if self.tree is not None and self.min_confidence:
            raise ValueError("min_confidence ends chains; a tree spends its nodes by confidence already")

    def scratch(self) -> int:
        """Uncommitted entries that a round needs, in the draft's or the target's cache."""
        if self.tree is None:
            return self.length + 1
        return max(self.tree.nodes + 1, self.tree.width * self.length)


@dataclass(frozen=True)
class DraftedContext(Context):
    """A context that the draft head knows as well. Usable wherever a context is."""

    draft: DraftState


@dataclass(frozen=True)
class Engine:
    """What a call of decoding works with. target, logits: the understanding layers, and the final norm and LM head
    after them; drafter: None decodes plainly."""

    model: Bagel
    target: FusedStack
    logits: LogitsHead
    drafter: Drafter | None
    speculation: SpeculationSettings
    statistics: SpeculationStatistics


@dataclass
class Verdict:
    """The result of one verification: each document's path through the proposal (node numbers from the root on), the
    tokens along it (without the root) with the target's own one at the end."""

    paths: list[list[int]]
    tokens: list[list[int]]
    streams: list[Tensor] = field(default_factory=list)


class DecodingRun:
    """One call of decoding: caches, open documents, and the rounds of proposing and verifying."""

    def __init__(
        self, engine: Engine, context: Context, settings: DecodingSettings, generator: torch.Generator | None
    ) -> None:
        self.model, self.drafter = engine.model, engine.drafter
        self.target, self.logits = engine.target, engine.logits
        self.speculation, self.statistics = engine.speculation, engine.statistics
        self.settings, self.generator = settings, generator
        eos = self.model.config.tokens.eos
        self.stop = {eos} if settings.stop is None else set(settings.stop)
        self.stop_ids = torch.tensor(sorted(self.stop), device=self.model.device)
        self.context = context
        self.embed = self.model.understanding.embed_tokens.weight
        self.answers: list[list[int]] = [[] for _ in range(context.batch_size)]
        self.open = set(range(context.batch_size))
        self.position: list[int] = context.next_position.tolist()  # rope position of each document's root

    def answer(self, forced: list[int], on_tokens: OnTokens | None) -> list[list[int]]:
        """forced: what each answer begins with, bos first."""
        batch = self.context.batch_size
        room = len(forced) + self.settings.max_tokens + self.speculation.scratch() + 1
        self.cache = RowCache.of(self.context, room)
        # A finished document stands still, but is drafted on from wherever the verification of its garbage led.
        positions = max(self.position) + room + self.speculation.length
        self.table = RopeTable(self.model.config.llm, positions, self.embed)
        root = torch.tensor([forced] * batch, device=self.model.device)
        rows, state = None, None
        if self.drafter is not None:
            known = self.context.draft if isinstance(self.context, DraftedContext) else None
            state = self.drafter.empty_state(batch, room) if known is None else known.copy(room)
            rows = _waiting(state, self.embed[root]) if known is not None and len(forced) == 1 else None
        waiting = state if state is not None and state.pending else None
        while self.open:
            proposal = None
            if rows is not None and state is not None:
                proposal = self._propose(state, rows)
            verdict = self._verify(root, proposal)
            emitted = self._emit(verdict, proposal, on_tokens)
            if self.drafter is not None:
                rows = self._next_rows(verdict, root, waiting if rows is None else None)
            self._commit(verdict, emitted)
            root = torch.tensor([[tokens[-1]] for tokens in verdict.tokens], device=root.device)
        return self.answers

    def _propose(self, state: DraftState, rows: Rows) -> Proposal:
        assert self.drafter is not None
        hidden = self.drafter.follow(state, rows, self.table)
        last = torch.tensor(rows.counts, device=hidden.device)[:, None] - 1
        position = rows.position.gather(1, last)
        spec = self.speculation
        if spec.tree is not None:
            return grow_tree(self.drafter, state, (hidden, position), self.table, spec.tree, spec.length)
        settings = ChainSettings(spec.length, spec.min_confidence, self.stop_ids, self.settings, self.generator)
        return self.drafter.chain(state, hidden, position, self.table, settings)

    def _verify(self, root: Tensor, proposal: Proposal | None) -> Verdict:
        """One pass of the target over the roots (B, f) and what is proposed after them."""
        ids, inner = root, None
        offsets = torch.arange(root.shape[1], device=root.device)
        if proposal is not None:
            ids = torch.cat([root, proposal.tokens], dim=1)
            offsets = torch.arange(ids.shape[1], device=root.device)
            if proposal.parents is not None and proposal.depth is not None:
                inner = tree_mask(proposal.parents, self.speculation.length)
                offsets = F.pad(proposal.depth, (1, 0))
        positions = torch.tensor(self.position, device=root.device)[:, None] + offsets
        mask = self.cache.place(ids.shape[1], inner=inner)
        streams = [F.embedding(ids, self.embed)]
        x = self.target(streams[0], self.table.at(positions), mask, self.cache, record=streams)
        skipped = root.shape[1] - 1
        logits = self.logits(x[:, skipped:])
        finite = finite_rows(logits)
        paths, tokens = self._judge(logits, proposal)
        require_logits(finite, self.open, self.model)
        paths = [[*range(skipped), *(node + skipped for node in path)] for path in paths]
        return Verdict(paths, tokens, streams)

    def _judge(self, logits: Tensor, proposal: Proposal | None) -> tuple[list[list[int]], list[list[int]]]:
        """Paths through the proposal, and the tokens along them with the target's own after. logits: (B, M + 1, V)."""
        greedy = self.settings.temperature == 0
        p = None if greedy else next_token_probabilities(logits, self.settings)
        if p is not None and proposal is not None and proposal.probabilities is not None:
            accepted, bonus = sample_chain(proposal.tokens, proposal.probabilities, p, self.generator)
            kept, last, proposed = accepted.tolist(), bonus.tolist(), proposal.tokens.tolist()
            paths = [list(range(count + 1)) for count in kept]
            return paths, [[*row[:count], token] for row, count, token in zip(proposed, kept, last, strict=True)]
        chosen = (logits.argmax(-1) if p is None else draw(p, self.generator)).tolist()
        if proposal is None:
            return [[0] for _ in chosen], chosen
        proposed = proposal.tokens.tolist()
        chain = list(range(proposal.tokens.shape[1]))
        parents = [chain] * len(chosen) if proposal.parents is None else proposal.parents.tolist()
        paths = [walk(*row) for row in zip(proposed, parents, chosen, strict=True)]
        # Every node on a path was chosen by the target, so its choices are the tokens.
        return paths, [[row[node] for node in path] for row, path in zip(chosen, paths, strict=True)]

    def _emit(self, verdict: Verdict, proposal: Proposal | None, on_tokens: OnTokens | None) -> list[int]:
        """Add new tokens to the answers up to a stop token or the limit; how many each document emitted."""
        emitted = [0] * len(self.answers)
        longest = 0 if proposal is None else self._longest(proposal)
        for row in sorted(self.open):
            for token in verdict.tokens[row]:
                emitted[row] += 1
                if token in self.stop:
                    self.open.discard(row)
                    break
                self.answers[row].append(token)
                if len(self.answers[row]) == self.settings.max_tokens:
                    self.open.discard(row)
                    break
            accepted = min(emitted[row], len(verdict.tokens[row]) - 1)
            self.statistics.add(
                emitted[row], accepted, longest if accepted == len(verdict.tokens[row]) - 1 else accepted
            )
        if on_tokens is not None:
            for i in range(max(emitted)):
                new = [tokens[i] if i < count else -1 for tokens, count in zip(verdict.tokens, emitted, strict=True)]
                on_tokens(torch.tensor(new))
        return emitted

    def _longest(self, proposal: Proposal) -> int:
        return proposal.tokens.shape[1] if proposal.depth is None else self.speculation.length

    def _commit(self, verdict: Verdict, emitted: list[int]) -> None:
        """Keep what was accepted; finished documents stand still, so that their caches do not fill up."""
        counts = [len(path) if row in self.open else 0 for row, path in enumerate(verdict.paths)]
        for row, path in enumerate(verdict.paths):
            if counts[row]:
                self.cache.gather(row, path)
        self.cache.commit(counts)
        self.position = [position + count for position, count in zip(self.position, counts, strict=True)]

    def _next_rows(self, verdict: Verdict, root: Tensor, waiting: DraftState | None) -> Rows:
        """The rows of accepted tokens, from the target's own hidden states.

        waiting: of a context whose last row has not been seen by the draft yet, since the first pass was forced.
        """
        assert self.drafter is not None
        counts = [len(path) for path in verdict.paths]
        longest, device = max(counts), root.device
        features = {entry: verdict.streams[entry] for entry in self.drafter.entries}
        if all(path == list(range(len(path))) for path in verdict.paths):
            features = {entry: value[:, :longest] for entry, value in features.items()}
        else:
            index = torch.tensor([path + [0] * (longest - len(path)) for path in verdict.paths], device=device)
            batch = torch.arange(len(counts), device=device)[:, None]
            features = {entry: value[batch, index] for entry, value in features.items()}
        forced = root.shape[1] - 1
        following = (
            [root[row, 1:].tolist() + tokens for row, tokens in enumerate(verdict.tokens)] if forced else verdict.tokens
        )
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in following], device=device)
        position = torch.tensor(self.position, device=device)[:, None] + torch.arange(longest, device=device)
        frozen = [row for row in range(len(counts)) if row not in self.open]
        rows = Rows(features, F.embedding(ids, self.embed), position, counts, frozen)
        return rows if waiting is None else _prepend(waiting, F.embedding(root[:, :1], self.embed), rows)


def _waiting(state: DraftState, embedded: Tensor) -> Rows:
    """The last row of a context, followed by a token of embedding (B, 1, D)."""
    return Rows(state.pending, embedded, state.position, [1] * len(embedded))


def _prepend(state: DraftState, embedded: Tensor, rows: Rows) -> Rows:
    return Rows(
        {entry: torch.cat([state.pending[entry], value], 1) for entry, value in rows.features.items()},
        torch.cat([embedded, rows.embedded], 1),
        torch.cat([state.position, rows.position], 1),
        [count + 1 for count in rows.counts],
        rows.frozen,
    )
