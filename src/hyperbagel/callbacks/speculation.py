"""What a draft head gains: plain and speculative decoding of the same questions, in turn, in one run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
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
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.speculative import SpeculationSettings, Speculator
from hyperbagel.decoding.statistics import SpeculationStatistics
from hyperbagel.draft.head import DraftHead

_SPECULATION = SpeculationSettings()


@dataclass
class KindResult:
    """Of the questions of one kind. seconds, tokens: of plain and speculative decoding; differing: answers that are not
    those of plain decoding; statistics: of the speculative one."""

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
        """acceptance_length, n_alpha (mean of the curve) and its points, tokens a second of both, speedup,
        differing.
        """
        plain = self.plain_tokens / max(self.plain_seconds, 1e-9)
        speculative = self.tokens / max(self.seconds, 1e-9)
        curve = {f"n_alpha_{n}": alpha for n, alpha in enumerate(self.statistics.n_alpha)}
        return {
            "acceptance_length": self.statistics.acceptance_length,
            "n_alpha": self.statistics.mean_alpha,
            **curve,
            "tokens_per_second_plain": plain,
            "tokens_per_second": speculative,
            "speedup": speculative / max(plain, 1e-9),
            "differing_answers": float(self.differing),
            "questions": float(self.questions),
        }


@dataclass(frozen=True)
class Question:
    """A context that is to be answered. kind: what it is counted under; prefix: ids that the answer begins with."""

    document: Document
    kind: str
    prefix: tuple[int, ...] = ()


class Speculation(Callback):
    """Answers the questions of validation and test documents twice, plainly and with the draft head.

    Both ways share all code but the drafting, take turns question by question, and swap who comes first; prefilling is
    not timed. Logs `speculation/{acceptance_length,n_alpha,tokens_per_second,speedup,...}`, and the same for each kind
    of document as `speculation/<kind>/...`: the sample's own `meta["kind"]`, or what stands before the answer
    (`after_image`: behind a picture that was to be drawn, `picture`, `text`). Greedy answers have to be equal:
    `speculation/differing_answers` counts those that are not. `results` keeps the figures for reports.

    Args:
        speculation: how tokens are proposed.
        max_tokens: longest answer.
        batch_size: questions answered at once.
        questions: most questions of a run.
        warmup: questions answered before the clock runs.
    """

    def __init__(
        self,
        speculation: SpeculationSettings = _SPECULATION,
        max_tokens: int = 128,
        batch_size: int = 1,
        questions: int = 200,
        warmup: int = 2,
    ) -> None:
        if min(max_tokens, batch_size, questions) < 1 or warmup < 0:
            raise ValueError(
                "Speculation: max_tokens, batch_size and questions must be at least 1, warmup not negative"
            )
        self.speculation, self.max_tokens, self.batch_size = speculation, max_tokens, batch_size
        self.questions, self.warmup = questions, warmup
        self.results: dict[str, KindResult] = {}
        self._asked: list[Question] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a stage without a draft head, before anything runs."""
        if not isinstance(getattr(pl_module, "draft", None), DraftHead):
            raise TypeError(
                f"Speculation needs a stage with `model` and `draft`; {type(pl_module).__name__} has no draft head"
            )

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a new run."""
        self._asked = []

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
        """Collect the questions of a batch."""
        missing = self.questions - len(self._asked)
        if isinstance(batch, DocumentBatch) and missing > 0 and not trainer.sanity_checking:
            self._asked += questions_of(batch)[:missing]

    on_validation_batch_end = on_test_batch_end

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Answer and log."""
        if not self._asked:
            return
        training = pl_module.training
        pl_module.eval()
        model: Bagel = pl_module.model  # type: ignore[assignment]
        self.results = self.measure(model, pl_module.draft, self._asked)  # type: ignore[arg-type]
        pl_module.train(training)
        total = KindResult()
        for kind, result in self.results.items():
            total.merge(result)
            pl_module.log_dict(
                {f"speculation/{kind}/{name}": value for name, value in result.metrics().items()}, sync_dist=True
            )
        pl_module.log_dict({f"speculation/{name}": value for name, value in total.metrics().items()}, sync_dist=True)

    on_validation_epoch_end = on_test_epoch_end

    def measure(self, model: Bagel, draft: DraftHead, asked: Sequence[Question]) -> dict[str, KindResult]:
        """Figures by kind of document."""
        plain, speculative = Speculator(model), Speculator(model, draft, self.speculation)
        settings = DecodingSettings(self.max_tokens)
        results: dict[str, KindResult] = {}
        batches = list(_batches(asked, self.batch_size))
        for batch in batches[: self.warmup]:
            context = speculative.prefill([question.document for question in batch])
            for way in (plain, speculative):
                way.decode(context, settings, prefix=batch[0].prefix)
        for turn, batch in enumerate(tqdm(batches, "Speculation", leave=False)):
            context = speculative.prefill([question.document for question in batch])
            result = results.setdefault(batch[0].kind, KindResult())
            speculative.statistics = result.statistics
            timed = {}
            for way in (plain, speculative) if turn % 2 else (speculative, plain):
                started = time.perf_counter()
                answers = way.decode(context, settings, prefix=batch[0].prefix)
                timed[way is plain] = (time.perf_counter() - started, answers)
            seconds, answers = timed[True]
            result.plain_seconds += seconds
            result.plain_tokens += _count(answers, settings)
            result.seconds += timed[False][0]
            result.tokens += _count(timed[False][1], settings)
            result.questions += len(batch)
            result.differing += sum(a != b for a, b in zip(answers, timed[False][1], strict=True))
        return results


def _count(answers: list[list[int]], settings: DecodingSettings) -> int:
    """Tokens made, those that ended answers included."""
    return sum(len(answer) + (len(answer) < settings.max_tokens) for answer in answers)


def _batches(asked: Sequence[Question], size: int) -> list[list[Question]]:
    """Questions of one kind and prefix together."""
    groups: dict[tuple[str, tuple[int, ...]], list[Question]] = {}
    for question in asked:
        groups.setdefault((question.kind, question.prefix), []).append(question)
    return [group[i : i + size] for _, group in sorted(groups.items()) for i in range(0, len(group), size)]


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
