"""One evaluation of the generation network, and pictures and edits from document to pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.context import GuidedContext
from hyperbagel.bagel.segments import Document
from hyperbagel.bench.exactness import distance, evaluation
from hyperbagel.bench.limits import coding_operations, pass_operations, reading_operations
from hyperbagel.bench.subject import PROMPT, Figures, Measurement, Subject, text
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION, Guidance
from hyperbagel.flow.sampler import Sampler
from hyperbagel.flow.schedule import timesteps
from hyperbagel.pipeline.economy import read_by
from hyperbagel.pipeline.painter import seeded_noise
from hyperbagel.pipeline.pipeline import STEPS

FEW: Final = (6, 4, 1)
"""Evaluations of distilled branches."""
BATCHES: Final = (1, 4)
_SHORT = 5
"""Steps of a teacher where few are measured for all."""


def one_pass(subject: Subject) -> Iterator[Measurement]:
    """One evaluation of a branch for one picture after a prompt."""
    model, branch = subject.model, subject.branch

    @torch.inference_mode()
    def measure() -> Figures:
        subject.need(branch)
        run, context = evaluation(model, branch, text())
        seconds = subject.meter.seconds(run, subject.repeats, calls=3)
        operations = pass_operations(model, subject.latents, context.length)
        limit = operations / subject.peaks.matmul
        figures: Figures = {"ms": 1e3 * seconds, "limit_ms": 1e3 * limit, "share_of_matmul": limit / seconds}
        if subject.exact is not None:
            exact, plain = subject.exact
            figures["distance"] = distance(run(), exact)
            figures |= {} if subject.runtime.quantize is None else {"distance_unrounded": plain}
        return figures

    yield {"what": "one pass"}, measure


def generations(subject: Subject) -> Iterator[Measurement]:
    """Pictures from prompts, by the teacher and by distilled branches."""
    return _drawings(subject, PAPER_GENERATION, subject.prompts)


def edits(subject: Subject) -> Iterator[Measurement]:
    """Edits of pictures, likewise."""
    return _drawings(subject, PAPER_EDITING, subject.edits)


def _drawings(
    subject: Subject, guidance: Guidance, documents: Callable[[int], list[Document]]
) -> Iterator[Measurement]:
    shift = subject.model.config.timestep_shift
    for batch in BATCHES:
        teacher = Sampler(STEPS, shift, guidance)
        yield _drawing(subject, Drawing(teacher, None, documents, batch))
        for steps in FEW:
            sampler = Sampler(steps, shift, guidance)
            yield _drawing(subject, Drawing(sampler, subject.branch, documents, batch))


@dataclass(frozen=True)
class Drawing:
    """A way of making some pictures at once. branch: None for the teacher."""

    sampler: Sampler
    branch: GenerationBranch | None
    documents: Callable[[int], list[Document]]
    batch: int

    @property
    def contexts_of_steps(self) -> list[int]:
        """How many contexts each step runs against."""
        guidance = self.sampler.guidance
        assert guidance is not None
        times = timesteps(self.sampler.steps, self.sampler.shift)[:-1].tolist()
        return [guidance.passes if self.branch is None and guidance.active(t) else 1 for t in times]

    @property
    def evaluations(self) -> int:
        """Of one picture."""
        return sum(self.contexts_of_steps)


def _drawing(subject: Subject, drawing: Drawing) -> Measurement:
    what = {"evaluations": drawing.evaluations, "batch": drawing.batch}

    @torch.inference_mode()
    def measure() -> Figures:
        shorter = drawing
        if subject.quick and drawing.branch is None:
            shorter = replace(drawing, sampler=replace(drawing.sampler, steps=_SHORT))
        once = replace(drawing, sampler=replace(drawing.sampler, steps=1))
        documents = drawing.documents(drawing.batch)
        draw_once(subject, once, documents)  # warms up
        repeats = 1 if drawing.branch is None else subject.repeats
        runs = [draw_once(subject, shorter, documents) for _ in range(repeats)]
        parts = [sorted(column)[repeats // 2] for column in zip(*(run.seconds for run in runs), strict=True)]
        parts[1] *= drawing.evaluations / runs[0].evaluations
        whole = sum(parts)
        limit = _operations(subject, drawing, runs[0].contexts, documents) / subject.peaks.matmul
        figures: Figures = {"seconds": whole, "limit_seconds": limit, "peak_bytes": subject.meter.peak_bytes()}
        if drawing.branch is not None:
            figures["planned_bytes"] = subject.planned(len(documents[0]) > 1, drawing.batch)
        figures |= dict(zip(("prefill", "denoising", "decoding"), (part / whole for part in parts), strict=True))
        if shorter.evaluations != drawing.evaluations:
            figures["measured_evaluations"] = runs[0].evaluations
        return figures

    return what, measure


@dataclass(frozen=True)
class _Run:
    """seconds: of prefill, denoising and decoding."""

    seconds: tuple[float, float, float]
    evaluations: int
    contexts: GuidedContext


def draw_once(subject: Subject, drawing: Drawing, documents: Sequence[Document]) -> _Run:
    """From documents to pixels, as `Painter.draw` does it, with a look at the clock between the parts."""
    model, now = subject.model, subject.meter.now
    grid = model.latent_grid([subject.size] * len(documents))
    noise = seeded_noise(grid, range(len(documents)), model.config.latent_token_dim).to(model.device)
    denoiser = drawing.branch or model.generation
    marks = [now()]
    subject.need(*read_by(model, documents))
    contexts = drawing.sampler.read(model, documents, drawing.branch)
    marks.append(now())
    subject.need(denoiser)
    sample = drawing.sampler.sample(model, contexts, grid, noise, drawing.branch)
    marks.append(now())
    subject.need(model.autoencoder)
    model.decode_latents(sample.latents, grid)
    marks.append(now())
    seconds = (marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2])
    return _Run(seconds, sample.nfe, contexts)


def _operations(subject: Subject, drawing: Drawing, contexts: GuidedContext, documents: Sequence[Document]) -> int:
    """Of all pictures: reading, every pass against its context, the autoencoder."""
    model, latents = subject.model, subject.latents
    editing = len(documents[0]) > 1
    lengths = [c.length for c in (contexts.full, contexts.no_text, contexts.no_image) if c is not None]
    passes = sum(
        pass_operations(model, latents, length) for count in drawing.contexts_of_steps for length in lengths[:count]
    )
    words = PROMPT + 2
    reading = reading_operations(model, words)
    if editing:
        vit = contexts.full.length - words - latents - 4
        reading = reading_operations(model, words + 4, vit, latents)
        reading += coding_operations(model.config.autoencoder, *subject.size, encode=True)
    decoding = coding_operations(model.config.autoencoder, *subject.size, encode=False)
    return drawing.batch * (reading + passes + decoding)
