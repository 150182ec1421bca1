"""What follows on documents: answers and pictures, by one model with its branch and draft head."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.branch_checkpoint import BranchInfo, load_branch
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.speculative import Speculator
from hyperbagel.decoding.statistics import SpeculationStatistics
from hyperbagel.draft.checkpoint import load_draft
from hyperbagel.flow.guidance import Guidance
from hyperbagel.flow.sampler import Reader, Sampler
from hyperbagel.flow.trajectory import Progress
from hyperbagel.pipeline.answers import TextStream
from hyperbagel.pipeline.loading import said
from hyperbagel.pipeline.painter import Painter, largest_square, warn_of_misfits
from hyperbagel.pipeline.results import Answer, Picture
from hyperbagel.pipeline.thinking import LONGEST, split_thought

log = logging.getLogger(__name__)

STEPS: Final = 50
"""Denoising steps of a teacher, unless told otherwise."""


class Engine:
    """Answers and draws what follows on documents. `Pipeline` makes the documents.

    Args:
        model: what reads, and without a branch draws.
        tokenizer: the model's.
        branch: file or name of a distilled branch.
        draft: file or name of a draft head.
        context: which branch reads the source pictures of edits; None: as the branch was made for.
    """

    def __init__(
        self,
        model: Bagel,
        tokenizer: Tokenizer,
        branch: str | Path | None = None,
        draft: str | Path | None = None,
        context: Reader | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._name = None if branch is None else str(branch)
        self._branch: GenerationBranch | None = None
        self._info: BranchInfo | None = None
        if branch is not None:
            self._branch, self._info = load_branch(branch, model)
        self._draft = None if draft is None else load_draft(draft, model)
        self._context = context
        self._told: set[object] = set()  # texts and samplers that were warned of

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of a picture unless others are asked for."""
        return largest_square(self.model.config)

    def answer_after(
        self,
        documents: Sequence[Document],
        settings: DecodingSettings | None = None,
        seed: int = 0,
        answer_prefix: str = "",
        think: bool = False,
        stream: Callable[[str], object] | None = None,
    ) -> list[Answer]:
        """What follows on documents, written together; arguments as of `ask`. think: answers begin with a thought;
        stream: gets the text of the first."""
        if not documents:
            return []
        settings = settings or (LONGEST if think else None)
        texts = [TextStream(self.tokenizer, self.model.config.tokens.eos) for _ in documents]

        def add(new: Tensor) -> None:
            pieces = [text.add(token) for text, token in zip(texts, new.tolist(), strict=True)]
            if pieces[0] and stream is not None:
                stream(pieces[0])

        started = time.perf_counter()
        statistics = self.speculator.statistics = SpeculationStatistics()
        with torch.inference_mode():
            generator = torch.Generator(self.model.device).manual_seed(seed)
            prefix = self.tokenizer.encode(answer_prefix, control=True).tolist()
            self.speculator.decode(self.speculator.prefill(documents), settings, generator, add, prefix)
        seconds = (time.perf_counter() - started) / len(documents)
        parts = [split_thought(text.text) if think else ("", text.text) for text in texts]
        return [
            Answer(rest, text.count, statistics.passes, seconds, thought)
            for text, (thought, rest) in zip(texts, parts, strict=True)
        ]

    def draw_after(
        self,
        painter: Painter,
        documents: Sequence[Document],
        sizes: Sequence[tuple[int, int]],
        seeds: Sequence[int],
        think: bool = False,
        progress: Progress | None = None,
    ) -> list[Picture]:
        """The pictures that follow on documents, after a thought about each where it is asked for."""
        if not documents:
            return []
        started = time.perf_counter()
        thoughts = [answer.text for answer in self.answer_after(documents, LONGEST)] if think else None
        with torch.inference_mode():
            drawn = painter.draw(documents, sizes, seeds, progress, thoughts)
        images = [Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()) for picture in drawn]
        seconds = (time.perf_counter() - started) / len(images)
        return [
            Picture(image, painter.cost.nfe, seconds, thought)
            for image, thought in zip(images, thoughts or [""] * len(images), strict=True)
        ]

    def painter(self, guidance: Guidance, steps: int | None = None) -> Painter:
        """Draws as this pipeline does, and counts what it costs. Warns of what the branch was not made for.

        steps: as in `generate`. Raises ValueError for impossible settings.
        """
        model, info = self.model, self._info or self.model.merged
        if info is None:
            sampler = Sampler(STEPS if steps is None else steps, model.config.timestep_shift, guidance)
            return Painter(model, self.tokenizer, sampler)
        steps = (info.nfe or STEPS) if steps is None else steps
        sampler = Sampler(steps, info.shift, guidance, self._context or info.reader)
        unguided = replace(sampler, guidance=None)
        merged = self._branch is None  # weights that have the scales inside, for which guidance is to be off
        if sampler not in self._told:
            self._told.add(sampler)
            fitting = unguided if merged and guidance.text_scale <= 1 else sampler
            warn_of_misfits(self._name or str(model.source), info, fitting)
        return Painter(model, self.tokenizer, unguided if merged else sampler, self._branch)

    def read(self, texts: Sequence[str]) -> list[str]:
        """Texts to be read. Warns of words that the model cannot know; raises ValueError for an empty text."""
        for text in dict.fromkeys(texts):
            unknown = self.tokenizer.unknown_words(said(text))
            if unknown and text not in self._told:
                self._told.add(text)
                known = self.tokenizer.knows
                log.warning("words that the model does not know: %s; it knows %s", ", ".join(unknown), known)
        return list(texts)

    @cached_property
    def speculator(self) -> Speculator:
        """Writes answers, with the draft head if there is one."""
        return Speculator(self.model, self._draft)
