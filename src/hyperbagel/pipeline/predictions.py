"""What a model makes of documents, in files: the picture, the edit or the answer that each of them ends with."""

from __future__ import annotations

import re
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.functional import to_pil_image

from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import (
    Document,
    DocumentBatch,
    ImageSegment,
    LatentSegment,
    Segment,
    TextSegment,
    holds_image,
)
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.speculative import Speculator
from hyperbagel.draft.head import DraftHead
from hyperbagel.files import write_json, write_picture
from hyperbagel.pipeline.painter import Painter

_OUTSIDE = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True)
class PredictionSettings:
    """What `predict` writes, and where."""

    folder: str | None = None
    """Folder to write to; None: `predictions` in the run's."""
    max_tokens: int = 256
    """Longest answer."""
    seed: int = 0
    """Seed of the noise, with the name of the document."""


@dataclass(frozen=True)
class _Task:
    """A document whose end is to be made: `context` is what comes before, `wanted` what stands there in the data."""

    file: Path
    record: dict[str, Any]
    context: Document
    wanted: Segment


@dataclass
class Predictor:
    """Writes KEY.png and KEY.json, or KEY.json alone for an answer, into a folder for each source of documents.

    What is there is kept, so a run that was stopped goes on when it is repeated.

    model, tokenizer: what reads, answers, and without a branch draws; generation, editing: draw; draft: speeds answers
    up; folder: to write to; written, kept: how many documents so far.
    """

    model: Bagel
    tokenizer: Tokenizer
    generation: Painter
    editing: Painter
    folder: Path
    settings: PredictionSettings = field(default_factory=PredictionSettings)
    draft: DraftHead | None = None
    written: int = 0
    kept: int = 0

    @cached_property
    def speculator(self) -> Speculator:
        """Writes answers."""
        return Speculator(self.model, self.draft)

    def write(self, batch: DocumentBatch) -> list[str]:
        """Make and write what each document ends with; returns the JSON files.

        Raises ValueError for a document that ends with nothing to be made, WriteError.
        """
        files = [self.file(batch.source, key) for key in batch.keys]
        pairs = zip(files, batch.keys, batch.documents, strict=True)
        tasks = [self._task(file, batch.source, key, document) for file, key, document in pairs if not file.exists()]
        groups: dict[tuple[Any, ...], list[_Task]] = defaultdict(list)
        for task in tasks:
            if isinstance(task.wanted, TextSegment):
                groups["answer", *task.wanted.ids[: task.wanted.prefix].tolist()].append(task)
            else:
                groups[("edit" if holds_image(task.context) else "generate",)].append(task)
        for (kind, *prefix), members in groups.items():
            if kind == "answer":
                self._answer(members, prefix)
            else:
                self._draw(self.editing if kind == "edit" else self.generation, members)
        self.written += len(tasks)
        self.kept += len(files) - len(tasks)
        return [str(file) for file in files]

    def file(self, source: str, key: str) -> Path:
        """The JSON file of a document."""
        return self.folder / _OUTSIDE.sub("_", source or "documents") / f"{_OUTSIDE.sub('_', key)}.json"

    def _task(self, file: Path, source: str, key: str, document: Document) -> _Task:
        learnt = [i for i, segment in enumerate(document) if getattr(segment, "loss", False)]
        if not learnt:
            raise ValueError(
                f"document {key} of source {source!r} ends with nothing to be made: mark a text or a picture of it "
                'with "loss": true'
            )
        # Pictures that were drawn are followed by their clean copies, which later segments see in their place.
        context = [segment for segment in document[: learnt[-1]] if not _is_drawn(segment)]
        texts = [self.tokenizer.decode(segment.ids) for segment in context if isinstance(segment, TextSegment)]
        return _Task(file, {"key": key, "source": source, "texts": texts}, context, document[learnt[-1]])

    def _draw(self, painter: Painter, tasks: Sequence[_Task]) -> None:
        sizes = [_pixel_size(self.model, task.wanted) for task in tasks]
        seeds = [(self.settings.seed + zlib.crc32(task.record["key"].encode())) % 2**32 for task in tasks]
        started = time.perf_counter()
        pictures = painter.draw([task.context for task in tasks], sizes, seeds)
        seconds = (time.perf_counter() - started) / len(tasks)
        for task, picture, seed in zip(tasks, pictures, seeds, strict=True):
            file = task.file.with_suffix(".png")
            write_picture(file, to_pil_image(picture))
            made = {"picture": file.name, "seed": seed, "nfe": painter.cost.nfe, "seconds": round(seconds, 4)}
            write_json(task.file, task.record | made)

    def _answer(self, tasks: Sequence[_Task], prefix: list[int]) -> None:
        started = time.perf_counter()
        with torch.inference_mode():
            context = self.speculator.prefill([task.context for task in tasks])
            answers = self.speculator.decode(context, DecodingSettings(self.settings.max_tokens), prefix=prefix)
        seconds = (time.perf_counter() - started) / len(tasks)
        decode: Callable[[Any], str] = self.tokenizer.decode
        for task, ids in zip(tasks, answers, strict=True):
            assert isinstance(task.wanted, TextSegment)
            expected = decode(task.wanted.ids[task.wanted.prefix :])
            made = {"answer": decode(ids), "expected": expected, "tokens": len(ids), "seconds": round(seconds, 4)}
            write_json(task.file, task.record | made)


def _is_drawn(segment: Segment) -> bool:
    return isinstance(segment, ImageSegment | LatentSegment) and segment.loss


def _pixel_size(model: Bagel, wanted: Segment) -> tuple[int, int]:
    """Height and width of a picture that is to be drawn."""
    if isinstance(wanted, LatentSegment):
        height, width = wanted.latent.shape[1:]
        return height * model.autoencoder.downsample, width * model.autoencoder.downsample
    assert isinstance(wanted, ImageSegment)
    height, width = wanted.pixels.shape[1:]
    return height, width
