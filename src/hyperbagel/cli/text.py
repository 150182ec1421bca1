"""`hyperbagel chat`, and what it shares with the interactive page."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hyperbagel.cli.loading import Device, check_files, load_model

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from hyperbagel.bagel.model import Bagel
    from hyperbagel.bagel.segments import Document
    from hyperbagel.bagel.tokenizer import Tokenizer


@dataclass(frozen=True)
class Chat:
    """Answer a question about a picture, or without one. The answer appears as it is written.

    Args:
        image: picture file the question is about, or - for none.
        question: what to ask.
        model: checkpoint folder, or the name of a model that comes with the package.
        draft: file of a draft head, which speeds the answer up without changing it.
        answer_prefix: what the model is made to begin its answer with, as chat models expect; it is not shown.
        max_tokens: longest answer.
        temperature: 0 always takes the likeliest token; higher values vary more.
        top_p: sample among the likeliest tokens that together have this probability.
        seed: of the sampling.
        device: where and how to compute.
    """

    image: str
    question: str
    model: str = "scenes"
    draft: str | None = None
    answer_prefix: str = ""
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    device: Device = field(default_factory=Device)


class TextStream:
    """The text of an answer, token by token. count: tokens so far, the one that ends the answer included."""

    def __init__(self, tokenizer: Tokenizer, eos: int) -> None:
        self._tokenizer, self._eos = tokenizer, eos
        self._tokens: list[int] = []
        self._shown = self.count = 0

    def add(self, token: int) -> str:
        """The text that a token completes: nothing at the end of the answer, and inside of a character."""
        self.count += 1
        if token == self._eos:
            return ""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if text.endswith("\ufffd"):  # a character may need several tokens
            return ""
        new, self._shown = text[self._shown :], len(text)
        return new


def question_document(model: Bagel, tokenizer: Tokenizer, question: str, picture: Image.Image | None) -> Document:
    """A question after the picture that it is about, if there is one."""
    from hyperbagel.bagel.segments import TextSegment, ViTSegment

    document: Document = [TextSegment(tokenizer.prompt(question))]
    if picture is not None:
        document = [ViTSegment(model.config.vit_transform(picture).to(model.device, model.dtype)), *document]
    return document


def chat(options: Chat) -> None:
    """Answer a question, about a picture or not."""
    import torch

    from hyperbagel.bagel.images import load_image
    from hyperbagel.decoding.autoregressive import DecodingSettings
    from hyperbagel.decoding.speculative import Speculator
    from hyperbagel.draft.checkpoint import load_draft

    check_files(draft=options.draft)
    picture = None if options.image == "-" else load_image(options.image)
    settings = DecodingSettings(options.max_tokens, options.temperature, options.top_p)
    bagel, tokenizer = load_model(options.model, options.device, ("generation", "autoencoder"), options.question)
    stream = TextStream(tokenizer, bagel.config.tokens.eos)

    def show(new: torch.Tensor) -> None:
        sys.stdout.write(stream.add(int(new[0])))
        sys.stdout.flush()

    head = None if options.draft is None else load_draft(options.draft, bagel)
    speculator = Speculator(bagel, head)
    started = time.perf_counter()
    with torch.inference_mode():
        generator = torch.Generator(bagel.device).manual_seed(options.seed)
        document = question_document(bagel, tokenizer, options.question, picture)
        prefix = tokenizer.encode(options.answer_prefix, control=True).tolist()
        speculator.decode(speculator.prefill([document]), settings, generator, show, prefix)
    seconds = time.perf_counter() - started
    print(f"\n[{stream.count} tokens, {stream.count / seconds:.1f} tokens/s]", file=sys.stderr)
