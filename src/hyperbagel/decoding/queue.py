"""Many answers, a few at once: where one is finished, the next document takes its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hyperbagel.bagel.segments import Document
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.speculative import Speculator
from hyperbagel.decoding.speculative_loop import DecodingRun, Engine


@dataclass(eq=False)
class Request:
    """A document that is to be answered. generator: of its draws; mark: whatever tells its answer apart."""

    document: Document
    generator: torch.Generator | None = None
    mark: Any = None


class AnswerQueue:
    """Answers documents in a batch of changing members.

    New documents come in when a quarter of the places are free, so that they are read several at once. Answers are
    those that each document gets alone.

    speculator: writes; settings: how; size: documents answered at once; prefix: ids that answers begin with.
    """

    def __init__(
        self, speculator: Speculator, settings: DecodingSettings, size: int, prefix: Sequence[int] = ()
    ) -> None:
        if size < 1:
            raise ValueError(f"need a size of at least 1, got {size}")
        self.speculator, self.settings, self.size = speculator, settings, size
        self.forced = [speculator.model.config.tokens.bos, *prefix]

    def answer(self, waiting: deque[Request]) -> Iterator[tuple[Request, list[int]]]:
        """Answers in the order in which they are finished, until nothing waits. What is added to `waiting` between two
        answers is answered too.

        Raises ValueError for sampling without a generator for each document.
        """
        engine = self.speculator.engine(self.settings)
        asked: dict[int, Request] = {}
        run: DecodingRun | None = None
        total = 0
        while waiting or run is not None:
            free = self.size - (len(run.documents) if run is not None else 0)
            if waiting and (run is None or 4 * free >= self.size):
                new = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                asked |= dict(enumerate(new, total))
                begun = self._begin(engine, new, total)
                total += len(new)
                run = begun if run is None else _joined(run, begun)
            elif run is not None:
                _advance(run)
            assert run is not None
            finished, run.finished = run.finished, {}
            run = run if run.documents else None
            for number, answer in finished.items():
                yield asked.pop(number), answer

    @torch.inference_mode()
    def _begin(self, engine: Engine, requests: Sequence[Request], first: int) -> DecodingRun:
        """A run of new documents, after their first tokens."""
        generators = [request.generator for request in requests if request.generator is not None]
        if self.settings.temperature > 0 and len(generators) < len(requests):
            raise ValueError("sampling needs a generator for each document")
        context = self.speculator.prefill([request.document for request in requests])
        run = DecodingRun(engine, context, self.settings, generators or None, self.forced, first)
        run.round(plain=True)
        return run


@torch.inference_mode()
def _joined(run: DecodingRun, other: DecodingRun) -> DecodingRun:
    run.absorb(other)
    return run


@torch.inference_mode()
def _advance(run: DecodingRun) -> None:
    run.round()
