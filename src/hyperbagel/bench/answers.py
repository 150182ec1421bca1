"""Answers about a picture: the first token, and tokens a second with and without a draft head."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Final

import torch
from torch import Tensor

from hyperbagel.bagel.context import Context
from hyperbagel.bench.limits import reading_operations, token_bytes
from hyperbagel.bench.subject import PROMPT, Figures, Measurement, Subject, random_draft
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.proposal import Proposal
from hyperbagel.decoding.speculative import SpeculationSettings, Speculator
from hyperbagel.decoding.speculative_loop import DecodingRun
from hyperbagel.draft.head import DraftHead

PAPER: Final = 3.77
"""Acceptance length of the paper's draft head."""
PAPER_CHAIN: Final = 4
CURVE: Final = range(1, 9)
"""Further acceptance lengths; their chains are as long as the longest needs."""
BATCHES: Final = (1, 8)


class Forced(DecodingRun):
    """A run that accepts as many tokens as it is told, whatever they are, after it did all the work of verifying.

    mean: tokens a verification; documents are at different places of one sequence with this mean.
    """

    mean = 1.0
    _rounds = 0

    def _judge(self, logits: Tensor, proposal: Proposal | None) -> tuple[list[list[int]], list[list[int]]]:
        paths, tokens = super()._judge(logits, proposal)
        if proposal is None:
            return paths, tokens
        proposed = proposal.tokens.tolist()
        kept = [min(self._length(row) - 1, len(proposed[row])) for row in range(len(proposed))]
        self._rounds += 1
        paths = [list(range(count + 1)) for count in kept]
        last = [row[-1] for row in tokens]
        return paths, [[*row[:count], own] for row, count, own in zip(proposed, kept, last, strict=True)]

    def _length(self, row: int) -> int:
        place = self._rounds + row
        return math.floor((place + 1) * self.mean) - math.floor(place * self.mean)


class _Asked:
    """Some questions at once, which the model and the draft head have read when they are first needed."""

    def __init__(self, subject: Subject, speculator: Speculator, batch: int) -> None:
        self.subject, self.speculator, self.batch = subject, speculator, batch
        self.documents = subject.questions(batch)
        self.tokens = 32 if subject.quick else 128
        self.plain_seconds: float | None = None

    @cached_property
    def context(self) -> Context:
        """What was read."""
        return self.speculator.prefill(self.documents)

    def decode(self, plain: Speculator, tokens: int) -> object:
        """So many tokens of each answer, without the draft head."""
        return plain.decode(self.context, DecodingSettings(tokens, stop=()))

    def first_token(self, plain: Speculator) -> Figures:
        """From question to first token."""

        def run() -> object:
            return plain.decode(plain.prefill(self.documents), DecodingSettings(1, stop=()))

        model = self.subject.model
        seconds = self.subject.meter.seconds(run, self.subject.repeats)
        vit = self.context.length - PROMPT - 4
        limit = self.batch * reading_operations(model, PROMPT + 4, vit) / self.subject.peaks.matmul
        return {"seconds": seconds, "limit_seconds": limit}

    def plain(self, plain: Speculator) -> Figures:
        """Tokens a second, beside what reading the weights for each token allows."""
        seconds = self.subject.meter.seconds(lambda: self.decode(plain, self.tokens), self.subject.repeats)
        self.plain_seconds = seconds / self.tokens
        least = self._token_bytes() / self.subject.peaks.copy
        return self._rate(seconds / self.tokens) | {"limit_tokens_per_second": self.batch / least}

    def _token_bytes(self) -> int:
        subject = self.subject
        return token_bytes(subject.model, self.context.length, self.batch, subject.runtime.quantize)

    def speculative(self, mean: float, length: int) -> Figures:
        """The same with chains of which so many tokens are accepted; the first rounds, in which the draft head reads
        the question, are left out."""
        spec = self.speculator.proposing(SpeculationSettings(length))
        runs = [self._forced(spec, mean) for _ in range(self.subject.repeats + 1)][1:]
        seconds, rounds, tokens = runs[sorted(range(len(runs)), key=lambda i: runs[i][0])[len(runs) // 2]]
        figures = self._rate(seconds * self.batch / tokens) | {"ms_per_round": 1e3 * seconds / rounds}
        figures["acceptance_length"] = spec.statistics.acceptance_length
        if self.plain_seconds is not None:
            figures["round_in_plain_tokens"] = seconds / rounds / self.plain_seconds
            figures["speedup"] = self.plain_seconds / seconds * tokens / self.batch
        return figures

    @torch.inference_mode()
    def _forced(self, spec: Speculator, mean: float) -> tuple[float, int, int]:
        """Seconds, rounds and tokens of answers after their first round."""
        settings = DecodingSettings(self.tokens, stop=())
        run = Forced(spec.engine(settings), self.context, settings, None, [spec.model.config.tokens.bos])
        run.mean = mean
        run.round()
        before, rounds, started = spec.statistics.tokens, 0, self.subject.meter.now()
        while run.documents:
            run.round()
            rounds += 1
        return self.subject.meter.now() - started, rounds, spec.statistics.tokens - before

    def replayed(self, draft: DraftHead | None) -> Figures:
        """Rounds of one shape, which a GPU replays; of random chains, of which hardly anything is accepted."""
        static = Speculator(self.subject.model, draft, SpeculationSettings(PAPER_CHAIN), static=True)
        settings = DecodingSettings(self.tokens, stop=())
        seconds = self.subject.meter.seconds(lambda: static.decode(self.context, settings), self.subject.repeats)
        rounds = static.statistics.passes / self.batch / (self.subject.repeats + 1)
        figures = self._rate(seconds / self.tokens) | {"ms_per_round": 1e3 * seconds / rounds}
        if self.plain_seconds is not None:
            figures["round_in_plain_tokens"] = seconds / rounds / self.plain_seconds
        return figures

    def _rate(self, seconds: float) -> Figures:
        return {"tokens_per_second": self.batch / seconds, "ms_per_token": 1e3 * seconds}


def answers(subject: Subject) -> Iterator[Measurement]:
    """All measurements of answers. The draft head is made for them, of random weights."""
    subject.need()
    draft = random_draft(subject.model)
    drafted, plain = Speculator(subject.model, draft), Speculator(subject.model)
    for batch in BATCHES:
        asked = _Asked(subject, drafted, batch)
        yield {"what": "first token", "batch": batch}, partial(asked.first_token, plain)
        yield {"what": "plain", "batch": batch}, partial(asked.plain, plain)
        yield {"what": "plain, replayed", "batch": batch}, partial(asked.replayed, None)
        yield {"what": f"chain of {PAPER_CHAIN}, replayed", "batch": batch}, partial(asked.replayed, draft)
        chains = [(PAPER, PAPER_CHAIN)]
        if batch == 1 or not subject.quick:
            chains += [(float(mean), len(CURVE) - 1) for mean in CURVE]
        for mean, length in chains:
            what = {"what": f"chain of {length}, {mean:g} a round", "batch": batch}
            yield what, partial(asked.speculative, mean, length)
