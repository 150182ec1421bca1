"""The callback `Speculation`: plain and speculative decoding of the same questions, in turn, in one run."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from tqdm import tqdm

from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import (
    Document,
    DocumentBatch,
    ImageSegment,
    LatentSegment,
    Segment,
    TextSegment,
    ViTSegment,
)
from hyperbagel.callbacks.evaluation import Evaluation, Findings, Run
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.speculative import SpeculationSettings, Speculator
from hyperbagel.decoding.statistics import SpeculationStatistics
from hyperbagel.draft.head import DraftHead


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's garbage collector, as `timeit` measures: its pauses fall on whoever comes by."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass
class KindResult:
    """Measurements of one kind of question. seconds, tokens: of plain and speculative decoding; differing: answers that
    are not those of plain decoding; statistics: of the speculative one."""

    questions: int = 0
    differing: int = 0
    plain_seconds: float = 0.0
    plain_tokens: int = 0
    seconds: float = 0.0
    tokens: int = 0
    statistics: SpeculationStatistics = field(default_factory=SpeculationStatistics)

    def merge(self, other: KindResult) -> None:
        """Add another's counts."""
        for name in ("questions", "differing", "plain_seconds", "plain_tokens", "seconds", "tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.statistics.merge(other.statistics)

    def metrics(self) -> dict[str, float]:
        """acceptance_length, n_alpha (mean of the curve), tokens a second of both, speedup, differing."""
        plain = self.plain_tokens / max(self.plain_seconds, 1e-9)
        speculative = self.tokens / max(self.seconds, 1e-9)
        return {
            "acceptance_length": self.statistics.acceptance_length,
            "n_alpha": self.statistics.mean_alpha,
            "tokens_per_second_plain": plain,
            "tokens_per_second": speculative,
            "speedup": speculative / max(plain, 1e-9),
            "differing_answers": float(self.differing),
            "questions": float(self.questions),
        }

    def curve(self) -> dict[str, float]:
        """The points of the curve: n_alpha_0, n_alpha_1, ..."""
        return {f"n_alpha_{n}": alpha for n, alpha in enumerate(self.statistics.n_alpha)}


_Timed = tuple[float, list[list[int]]]
"""Seconds, and the answers."""

Results = dict[str, dict[str, KindResult]]
"""By way of proposing tokens, and then by kind of document."""


@dataclass(frozen=True)
class Question:
    """A context that is to be answered. kind: what it is counted under; prefix: ids that the answer begins with."""

    document: Document
    kind: str
    prefix: tuple[int, ...] = ()


class Speculation(Evaluation):
    """Answers the questions of validation and test documents plainly and with the draft head.

    All ways share all code but the drafting, on fused layers, and take turns question by question, each time in another
    order; prefilling is not timed, but what the draft head reads of a context is. Runs in every validation and test.
    Logs `speculation/{acceptance_length,n_alpha,tokens_per_second,speedup,...}` of the first way, and the same for each
    kind of document as `speculation/<kind>/...`: the sample's own `meta["kind"]`, or what stands before the answer
    (`after_image`: after a picture that was to be drawn, `picture`, `text`). Further ways are `<way>/speculation/...`.
    Greedy answers have to be equal: `speculation/differing_answers` counts those that are not. Weights are used as they
    are, whatever the trainer's mixed precision.

    Args:
        ways: how tokens are proposed, by a name for each; default one chain of the usual length.
        max_tokens: longest answer.
        batch_size: questions answered at once.
        questions: most questions of a run, on each rank.
        warmup: batches answered before the clock runs.

    Examples:
        >>> from hyperbagel.decoding.speculative import SpeculationSettings
        >>> list(Speculation({"chain": SpeculationSettings()}, questions=20).ways)
        ['chain']
    """

    def __init__(
        self,
        ways: dict[str, SpeculationSettings] | None = None,
        max_tokens: int = 128,
        batch_size: int = 1,
        questions: int = 200,
        warmup: int = 2,
    ) -> None:
        super().__init__()
        if min(max_tokens, batch_size, questions) < 1 or warmup < 0:
            raise ValueError(
                "Speculation: max_tokens, batch_size and questions must be at least 1, warmup not negative"
            )
        self.ways: Mapping[str, SpeculationSettings] = ways or {"chain": SpeculationSettings()}
        self.max_tokens, self.batch_size = max_tokens, batch_size
        self.questions, self.warmup = questions, warmup
        self.results: Results = {}
        self._asked: list[Question] | None = None

    def requirements(self, stage: L.LightningModule, command: str) -> Iterator[Callable[[], object]]:
        """Nothing but a stage with a draft head. Raises ValueError for another."""
        if not isinstance(getattr(stage, "draft", None), DraftHead):
            raise ValueError(
                f"Speculation needs a stage with `model` and `draft`; {type(stage).__name__} has no draft head"
            )
        return iter(())

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a new run."""
        self._asked = None

    on_validation_epoch_start = on_test_epoch_start

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the questions of a batch; stored features ask none."""
        if isinstance(batch, DocumentBatch) and not trainer.sanity_checking:
            self._asked = [*(self._asked or []), *questions_of(batch)][: self.questions]

    on_validation_batch_end = on_test_batch_end

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Answer and log."""
        if self._asked is not None:
            self._run_and_log(trainer, pl_module)

    on_validation_epoch_end = on_test_epoch_end

    def evaluate(self, run: Run) -> Findings:
        """One row a way, and one for each kind of document beneath it."""
        model, draft = run.stage.model, run.stage.draft
        assert isinstance(draft, DraftHead)  # `requirements` refused others
        with torch.autocast(model.device.type, enabled=False):
            measured = self.measure(model, draft, self._asked or [])
        self.results = _merged(run.gather([measured]))
        findings = Findings()
        for way, kinds in self.results.items():
            for kind, result in {"": _total(kinds), **kinds}.items():
                row = f"{way}, {kind}" if kind else way
                findings.rows[row] = {f"speculation/{name}": value for name, value in result.metrics().items()}
                findings.details[row] = result.curve()
        return findings

    def _metrics(self) -> dict[str, float]:
        """Of all ways and kinds, curves included, under the names of loggers."""
        metrics: dict[str, float] = {}
        for number, (way, kinds) in enumerate(self.results.items()):
            for kind, result in {"": _total(kinds), **kinds}.items():
                place = (f"{way}/" if number else "") + "speculation/" + (f"{kind}/" if kind else "")
                metrics |= {f"{place}{name}": value for name, value in (result.metrics() | result.curve()).items()}
        return metrics

    def measure(self, model: Bagel, draft: DraftHead, asked: Sequence[Question]) -> Results:
        """Figures by way and kind of document."""
        drafting = Speculator(model, draft)
        speculators: dict[str | None, Speculator] = {None: drafting.without_draft()}
        speculators |= {way: drafting.proposing(settings) for way, settings in self.ways.items()}
        settings = DecodingSettings(self.max_tokens)
        order: list[str | None] = [None, *self.ways]
        results: Results = {way: {} for way in self.ways}

        def timed(way: str | None, batch: list[Question]) -> _Timed:
            speculator = speculators[way]
            if way is not None:
                speculator.statistics = results[way].setdefault(batch[0].kind, KindResult()).statistics
            # Of its own: what the draft reads of a context is kept there, and each way has to spend the time for it.
            context = speculator.prefill([question.document for question in batch])
            with _uncollected():
                started = time.perf_counter()
                answers = speculator.decode(context, settings, prefix=batch[0].prefix)
                return time.perf_counter() - started, answers

        batches = _batches(asked, self.batch_size)
        for batch in batches[: self.warmup]:
            for way in order:
                timed(way, batch)
        for kinds in results.values():
            kinds.clear()
        for turn, batch in enumerate(tqdm(batches, "Speculation", leave=False)):
            first = turn % len(order)
            found = {way: timed(way, batch) for way in order[first:] + order[:first]}
            for way in self.ways:
                _note(results[way][batch[0].kind], found[None], found[way], settings)
        return results


def _note(result: KindResult, plain: _Timed, speculative: _Timed, settings: DecodingSettings) -> None:
    """Add a batch that was answered both ways."""
    result.plain_seconds += plain[0]
    result.plain_tokens += _count(plain[1], settings)
    result.seconds += speculative[0]
    result.tokens += _count(speculative[1], settings)
    result.questions += len(plain[1])
    result.differing += sum(a != b for a, b in zip(plain[1], speculative[1], strict=True))


def _total(kinds: Mapping[str, KindResult]) -> KindResult:
    total = KindResult()
    for result in kinds.values():
        total.merge(result)
    return total


def _merged(parts: Sequence[Results]) -> Results:
    """The results of all ranks together."""
    ways = parts[0].keys()
    kinds = sorted({kind for part in parts for found in part.values() for kind in found})
    return {
        way: {kind: _total({str(i): p[way][kind] for i, p in enumerate(parts) if kind in p[way]}) for kind in kinds}
        for way in ways
    }


def _count(answers: list[list[int]], settings: DecodingSettings) -> int:
    """Tokens made, those that ended answers included."""
    return sum(len(answer) + (len(answer) < settings.max_tokens) for answer in answers)


def _batches(asked: Sequence[Question], size: int) -> list[list[Question]]:
    """Questions of one kind and prefix together, otherwise in the order in which they were asked."""
    groups: dict[tuple[str, tuple[int, ...]], list[Question]] = {}
    batches = []
    for question in asked:
        group = groups.setdefault((question.kind, question.prefix), [])
        group.append(question)
        if len(group) == size:
            batches.append(groups.pop((question.kind, question.prefix)))
    return batches + list(groups.values())


def questions_of(batch: DocumentBatch) -> list[Question]:
    """Every answer's context in a batch: what stands before a text with loss."""
    found = []
    for document, meta in zip(batch.documents, batch.metas, strict=True):
        before: list[Segment] = []
        drawn = False
        for segment in document:
            if isinstance(segment, TextSegment) and segment.loss and before:
                prefix = tuple(segment.ids[: segment.prefix].tolist())
                found.append(Question(list(before), str(meta.get("kind") or _kind(before, drawn)), prefix))
            if isinstance(segment, ImageSegment | LatentSegment) and segment.loss:
                drawn = True  # to be drawn; its clean copies follow where something is said about it
            else:
                before.append(segment)
    return found


def _kind(before: Sequence[Segment], drawn: bool) -> str:
    if drawn:
        return "after_image"
    return "picture" if any(isinstance(segment, ViTSegment) for segment in before) else "text"
