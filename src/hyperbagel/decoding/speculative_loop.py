"""The loop of speculative decoding: propose tokens, verify them, keep what was accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.bagel.context import Context
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.transfer import moved
from hyperbagel.decoding.autoregressive import (
    DecodingSettings,
    OnTokens,
    finite_rows,
    next_token_probabilities,
    require_logits,
)
from hyperbagel.decoding.cache import RowCache
from hyperbagel.decoding.contexts import DraftedContext, TextContext
from hyperbagel.decoding.drafter import Drafter
from hyperbagel.decoding.fused import FusedStack, LogitsHead, RopeTable
from hyperbagel.decoding.lookup import Branches, Lookup, branches_of, laid_over
from hyperbagel.decoding.policies import PLAIN, Plan, Policy, Round
from hyperbagel.decoding.proposal import Proposal, ProposalSettings
from hyperbagel.decoding.settings import SpeculationSettings
from hyperbagel.decoding.statistics import SpeculationStatistics
from hyperbagel.decoding.tree import tree_mask
from hyperbagel.decoding.unseen import Unseen, Written
from hyperbagel.decoding.verify import Randomness, draw, sample_chain, walk
from hyperbagel.draft.phrases import Phrases


@dataclass(frozen=True)
class Engine:
    """What a call of decoding works with. target, logits: the understanding layers, and the final norm and LM head
    after them; table: grows with the positions that are needed; drafter: None decodes plainly; phrases: of other
    answers, if they are looked up; clock: gives seconds.
    """

    model: Bagel
    target: FusedStack
    logits: LogitsHead
    table: RopeTable
    drafter: Drafter | None
    speculation: SpeculationSettings
    policy: Policy
    phrases: Phrases | None
    statistics: SpeculationStatistics
    clock: Callable[[], float]


@dataclass
class Verdict:
    """The result of one verification: each document's path through the proposal (node numbers from the root on), the
    tokens along it (without the root) with the target's own one at the end."""

    paths: list[list[int]]
    tokens: list[list[int]]
    streams: list[Tensor] = field(default_factory=list)


class DecodingRun:
    """Documents that are being answered together: their caches, and the rounds of proposing and verifying.

    Finished documents leave. forced: what each answer begins with, bos first; randomness: of draws; first: number of
    the first document, under which its answer is found.
    """

    def __init__(
        self,
        engine: Engine,
        context: Context,
        settings: DecodingSettings,
        randomness: Randomness,
        forced: Sequence[int],
        first: int = 0,
    ) -> None:
        self.engine, self.settings, self.randomness = engine, settings, randomness
        model, batch = engine.model, context.batch_size
        self.stop = {model.config.tokens.eos} if settings.stop is None else set(settings.stop)
        self.embed = model.understanding.embed_tokens.weight
        self.total = first + batch
        self.documents = list(range(first, self.total))
        self.answers: dict[int, list[int]] = {document: [] for document in self.documents}
        self.finished: dict[int, list[int]] = {}
        self.position: list[int] = context.positions.tolist()  # rope position of each document's root
        self.root = moved(torch.tensor([list(forced)] * batch), model.device)
        room = len(forced) + settings.max_tokens + engine.speculation.scratch() + 1
        self.cache = RowCache.of(context, room)
        self.table = engine.table.reach(max(self.position) + room + engine.speculation.length)
        self.unseen: Unseen | None = None
        if engine.drafter is not None:
            memory = None
            if isinstance(context, DraftedContext):
                memory = context.draft
                engine.policy.meet(dict(zip(self.documents, context.endings, strict=False)))
            self.unseen = Unseen(engine.drafter, memory, room, (batch, forced[0]))

        self.lookups: dict[int, Lookup] = {}
        if engine.speculation.lookup is not None:
            texts = context.text if isinstance(context, TextContext) else ()
            for document, text in zip(self.documents, texts or [()] * batch, strict=True):
                self.lookups[document] = Lookup(engine.speculation.lookup, [*text, *forced], engine.phrases)

    def answer(self, on_tokens: OnTokens | None = None) -> list[list[int]]:
        """Answer all documents, in their order. on_tokens: as of `Speculator.decode`."""
        total = len(self.documents)
        while self.documents:
            new = self.round()
            if on_tokens is not None:
                for i in range(max(map(len, new.values()))):
                    now = [(new.get(document, []) + [-1] * (i + 1))[i] for document in range(total)]
                    on_tokens(torch.tensor(now))
        return [self.finished[document] for document in sorted(self.finished)]

    def round(self, plain: bool = False) -> dict[int, list[int]]:
        """Propose, verify and keep; what is new by document. plain: propose nothing, whatever the policy says."""
        started = self.engine.clock()
        fresh = self.unseen is not None and self.unseen.state is None
        forced = self.root.shape[1] > 1
        found = [] if plain or forced else self._looked_up()
        plan = PLAIN if plain or forced or (found and all(found)) else self._plan()
        proposal = self._propose(plan) if plan.length else None
        if self.engine.speculation.lookup is not None:
            proposal = laid_over(proposal, self._grown(proposal, found), self.engine.speculation.lookup)
        verdict = self._verify(proposal)
        new = self._emit(verdict, proposal)
        ended = {document: answer for document, answer in self.finished.items() if document in new}
        if self.answers:
            self._keep(verdict)
        else:
            self.documents = []
        if self.unseen is not None:
            drafted = plan.length > 0
            seconds = None if forced or (fresh and drafted) or any(found) else self.engine.clock() - started
            emitted = {document: len(tokens) for document, tokens in new.items()}
            self.engine.policy.note(Round(drafted, proposal.steps if proposal else 0, emitted, ended, seconds))
        return new

    def absorb(self, other: DecodingRun) -> None:
        """Take over the documents of a run of the same engine and settings, both of which have made a round."""
        self.finished |= other.finished
        self.total = max(self.total, other.total)
        if not other.documents:
            return
        self.documents += other.documents
        self.answers |= other.answers
        self.lookups |= other.lookups
        self.position += other.position
        self.root = torch.cat([self.root, other.root])
        self.cache = self.cache.beside(other.cache)
        if isinstance(self.randomness, Sequence) and isinstance(other.randomness, Sequence):
            self.randomness = [*self.randomness, *other.randomness]
        if self.unseen is not None and other.unseen is not None:
            self.unseen.absorb(other.unseen, self.table)

    def _plan(self) -> Plan:
        """What the policy says, but never more than answers may still have: the target adds a token of its own."""
        if self.unseen is None or not self.unseen.ready:
            return PLAIN
        left = self.settings.max_tokens - 1 - min(map(len, self.answers.values()))
        if left < 1:
            return PLAIN
        plan = self.engine.policy.plan(self.answers)
        if not plan.length:
            return PLAIN
        length = min(plan.length, left, self.engine.speculation.length)
        return Plan(min(length, self.unseen.drafter.longest or length), plan.min_confidence)

    def _looked_up(self) -> list[Branches]:
        """How each document likely goes on; nothing at all where nothing is looked up."""
        if not self.lookups:
            return []
        return [self.lookups[row].propose(self._left(row), self.stop) for row in self.documents]

    def _grown(self, proposal: Proposal | None, found: list[Branches]) -> list[Branches]:
        """What was found; where nothing was, the draft's tree grown on by what is looked up."""
        if proposal is None or proposal.chances is None:
            return found
        return [
            own or self.lookups[document].propose(self._left(document), self.stop, branches_of(proposal, row))
            for row, (document, own) in enumerate(zip(self.documents, found, strict=True))
        ]

    def _left(self, document: int) -> int:
        """How many tokens may be proposed to a document: the target adds one of its own."""
        return self.settings.max_tokens - 1 - len(self.answers[document])

    def _propose(self, plan: Plan) -> Proposal | None:
        assert self.unseen is not None
        tree = self.engine.speculation.tree
        decoding, stop = self.settings, self.stop
        settings = ProposalSettings(plan.length, plan.min_confidence, stop, decoding, self.randomness, tree)
        return self.unseen.propose(self.table, settings)

    def _verify(self, proposal: Proposal | None) -> Verdict:
        """One pass of the target over the roots (B, f) and what is proposed after them."""
        root, ids, inner = self.root, self.root, None
        offsets = torch.arange(root.shape[1], device=root.device)
        if proposal is not None:
            ids = torch.cat([root, proposal.tokens], dim=1)
            offsets = torch.arange(ids.shape[1], device=root.device)
            if proposal.parents is not None and proposal.depth is not None:
                inner = tree_mask(proposal.parents, proposal.steps)
                offsets = F.pad(proposal.depth, (1, 0))
        positions = torch.tensor(self.position, device=root.device)[:, None] + offsets
        mask = self.cache.place(ids.shape[1], inner=inner)
        streams = [F.embedding(ids, self.embed)]
        x = self.engine.target(streams[0], self.table.at(positions), mask, self.cache, record=streams)
        skipped = root.shape[1] - 1
        logits = self.engine.logits(x[:, skipped:])
        finite = finite_rows(logits)
        paths, tokens = self._judge(logits, proposal)
        require_logits(finite, dict(enumerate(self.documents)), self.total, self.engine.model)
        paths = [[*range(skipped), *(node + skipped for node in path)] for path in paths]
        return Verdict(paths, tokens, streams)

    def _judge(self, logits: Tensor, proposal: Proposal | None) -> tuple[list[list[int]], list[list[int]]]:
        """Paths through the proposal, and the tokens along them with the target's own after. logits: (B, M + 1, V)."""
        greedy = self.settings.temperature == 0
        p = None if greedy else next_token_probabilities(logits, self.settings)
        if p is not None and proposal is not None and proposal.probabilities is not None:
            accepted, bonus = sample_chain(proposal.tokens, proposal.probabilities, p, self.randomness)
            kept, last, proposed = accepted.tolist(), bonus.tolist(), proposal.tokens.tolist()
            paths = [list(range(count + 1)) for count in kept]
            return paths, [[*row[:count], token] for row, count, token in zip(proposed, kept, last, strict=True)]
        chosen = (logits.argmax(-1) if p is None else draw(p, self.randomness)).tolist()
        if proposal is None:
            return [[0] for _ in chosen], chosen
        proposed = proposal.tokens.tolist()
        chain = list(range(proposal.tokens.shape[1]))
        parents = [chain] * len(chosen) if proposal.parents is None else proposal.parents.tolist()
        paths = [walk(*row) for row in zip(proposed, parents, chosen, strict=True)]
        # Every node on a path was chosen by the target, so its choices are the tokens.
        return paths, [[row[node] for node in path] for row, path in zip(chosen, paths, strict=True)]

    def _emit(self, verdict: Verdict, proposal: Proposal | None) -> dict[int, list[int]]:
        """Add new tokens to the answers up to a stop token or the limit; what each document emitted, the former
        included."""
        emitted: dict[int, list[int]] = {}
        longest = 0 if proposal is None else proposal.steps
        for document, tokens in zip(self.documents, verdict.tokens, strict=True):
            answer, new = self.answers[document], []
            for token in tokens:
                new.append(token)
                if token in self.stop or len(answer) + len(new) == self.settings.max_tokens:
                    self.finished[document] = answer
                    break
            answer += [token for token in new if token not in self.stop]
            if document in self.lookups:
                self.lookups[document].extend(new)
            if document in self.finished:
                del self.answers[document]
                self.lookups.pop(document, None)
            emitted[document] = new
            accepted = min(len(new), len(tokens) - 1)
            self.engine.statistics.add(len(new), accepted, longest if accepted == len(tokens) - 1 else accepted)
        return emitted

    def _keep(self, verdict: Verdict) -> None:
        """Keep what was accepted, of the documents that go on."""
        counts = list(map(len, verdict.paths))
        if self.unseen is not None:
            following = verdict.tokens
            if self.root.shape[1] > 1:
                roots = self.root[:, 1:].tolist()
                following = [[*root, *tokens] for root, tokens in zip(roots, verdict.tokens, strict=True)]
            self.unseen.add(Written(verdict.streams, verdict.paths, following, list(self.position)))
        for row, path in enumerate(verdict.paths):
            self.cache.gather(row, path)
        self.cache.commit(counts)
        self.position = [position + count for position, count in zip(self.position, counts, strict=True)]
        self.root = torch.tensor([[tokens[-1]] for tokens in verdict.tokens], device=self.root.device)
        going = [row for row, document in enumerate(self.documents) if document in self.answers]
        if len(going) < len(self.documents):
            last = iter(row for row in reversed(going) if row >= len(going))
            self._select([row if row in going else next(last) for row in range(len(going))])

    def _select(self, rows: list[int]) -> None:
        self.documents = [self.documents[row] for row in rows]
        self.position = [self.position[row] for row in rows]
        self.root = self.root[rows]
        self.cache.keep(rows)
        if isinstance(self.randomness, Sequence):
            self.randomness = [self.randomness[row] for row in rows]
        if self.unseen is not None:
            self.unseen.select(rows)
