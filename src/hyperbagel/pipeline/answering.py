"""Answers to questions, and what follows on documents, with or without a draft head."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.loading import load_proposing
from hyperbagel.decoding.speculative import Speculator
from hyperbagel.decoding.statistics import Origin, SpeculationStatistics
from hyperbagel.pipeline.answers import ImageLike, TextStream, opened, question_document
from hyperbagel.pipeline.economy import Offload, read_by
from hyperbagel.pipeline.loading import said
from hyperbagel.pipeline.results import Answer, Piece
from hyperbagel.pipeline.thinking import BEFORE_ANSWER, LONGEST, split_thought

log = logging.getLogger(__name__)


class Answering:
    """Answers with one model: the part of a `Pipeline` that writes.

    Args:
        model: what reads and writes.
        tokenizer: the model's.
        draft: file or name of a draft head, or of phrases.
    """

    def __init__(self, model: Bagel, tokenizer: Tokenizer, draft: str | Path | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._draft, self._speculation = load_proposing(draft, model)
        self._told: set[object] = set()  # texts and samplers that were warned of
        self.offload: Offload | None = None
        self.replayed = False  # whether a GPU replays rounds of decoding

    @overload
    def ask(
        self,
        question: str,
        image: ImageLike | None = ...,
        *,
        settings: DecodingSettings | None = ...,
        seed: int = ...,
        think: bool = ...,
        answer_prefix: str = ...,
        stream: Callable[[Piece], object] | None = ...,
    ) -> Answer: ...

    @overload
    def ask(
        self,
        question: list[str],
        image: ImageLike | Sequence[ImageLike | None] | None = ...,
        *,
        settings: DecodingSettings | None = ...,
        seed: int = ...,
        think: bool = ...,
        answer_prefix: str = ...,
    ) -> list[Answer]: ...

    def ask(
        self,
        question: str | Sequence[str],
        image: ImageLike | Sequence[ImageLike | None] | None = None,
        *,
        settings: DecodingSettings | None = None,
        seed: int = 0,
        think: bool = False,
        answer_prefix: str = "",
        stream: Callable[[Piece], object] | None = None,
    ) -> Answer | list[Answer]:
        """The answer to a question, about a picture (or its file) or none; or to several, written together.

        image: of several questions one for all, or one each; settings: longest answer, temperature, top-p; None writes
        the likeliest tokens, 256 at most; seed: of sampling; think: have the model write a thought first (models that
        learnt it); answer_prefix: what answers are made to begin with, as chat models expect (it is not part of them);
        stream: called with each new piece of the text of a single answer, its thought included; a piece is a text that
        also tells whether the draft head proposed it.
        Raises ValueError for a question longer than the model reads, ImageError for a file that is no picture.
        """
        texts = self.read([question] if isinstance(question, str) else question)
        images = [image] * len(texts) if image is None or isinstance(image, ImageLike) else list(image)
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} pictures for {len(texts)} questions: give one for all, or one each")
        pictures = [None if source is None else opened(source) for source in images]
        documents = [
            question_document(self.model, self.tokenizer, text, picture, BEFORE_ANSWER if think else "")
            for text, picture in zip(texts, pictures, strict=True)
        ]
        one = stream if isinstance(question, str) else None
        answers = self.answer_after(documents, settings, seed, answer_prefix, think=think, stream=one)
        return answers[0] if isinstance(question, str) else answers

    def answer_after(
        self,
        documents: Sequence[Document],
        settings: DecodingSettings | None = None,
        seed: int = 0,
        answer_prefix: str = "",
        think: bool = False,
        stream: Callable[[Piece], object] | None = None,
    ) -> list[Answer]:
        """What follows on documents, written together; arguments as of `ask`. think: answers begin with a thought;
        stream: gets the text of a single one."""
        if not documents:
            return []
        settings = settings or (LONGEST if think else None)
        texts = [TextStream(self.tokenizer, self.model.config.tokens.eos) for _ in documents]

        speculator = self.speculator  # made before the clock runs
        started = time.perf_counter()
        if self.offload is not None:
            self.offload.need(*read_by(self.model, documents))
        statistics = speculator.statistics = SpeculationStatistics()
        origin = Origin(statistics)

        def add(new: Tensor) -> None:
            drafted = origin.drafted()
            pieces = [text.add(token) for text, token in zip(texts, new.tolist(), strict=True)]
            if pieces[0] and stream is not None:
                stream(Piece(pieces[0], drafted, texts[0].count, statistics.passes))

        with torch.inference_mode():
            generator = torch.Generator(self.model.device).manual_seed(seed)
            prefix = self.tokenizer.encode(answer_prefix, control=True).tolist()
            speculator.decode(speculator.prefill(documents), settings, generator, add, prefix)
        seconds = (time.perf_counter() - started) / len(documents)
        parts = [split_thought(text.text) if think else ("", text.text) for text in texts]
        return [
            Answer(rest, text.count, statistics.passes, seconds, thought)
            for text, (thought, rest) in zip(texts, parts, strict=True)
        ]

    def advice(self, text: str) -> str:
        """What to tell whoever gave a text: which words the model cannot know; nothing where it knows them all.

        Raises ValueError for an empty text.
        """
        unknown = self.tokenizer.unknown_words(said(text))
        if not unknown:
            return ""
        return f"words that the model does not know: {', '.join(unknown)}; it knows {self.tokenizer.knows}"

    def read(self, texts: Sequence[str]) -> list[str]:
        """Texts to be read. Warns of words that the model cannot know; raises ValueError for an empty text."""
        for text in dict.fromkeys(texts):
            advice = self.advice(text)
            if advice and text not in self._told:
                self._told.add(text)
                log.warning("%s", advice)
        return list(texts)

    @cached_property
    def speculator(self) -> Speculator:
        """Writes answers, with what proposes if there is anything."""
        return Speculator(self.model, self._draft, self._speculation, static=self.replayed)
