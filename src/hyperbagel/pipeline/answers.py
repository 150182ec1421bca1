"""Questions, about pictures or not, and the answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image

from hyperbagel.bagel.appearance import as_seen
from hyperbagel.bagel.images import load_image
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, TextSegment, ViTSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.pipeline.thinking import system_text

ImageLike: TypeAlias = Image.Image | str | Path
"""A picture, or its file."""


def opened(image: ImageLike) -> Image.Image:
    """A picture that may be given as its file. Raises ImageError for a file that is no picture."""
    return image if isinstance(image, Image.Image) else load_image(image)


class TextStream:
    """The text of an answer, token by token.

    text: so far; count: tokens so far, the one that ends the answer included.
    """

    def __init__(self, tokenizer: Tokenizer, eos: int) -> None:
        self._tokenizer, self._eos = tokenizer, eos
        self._tokens: list[int] = []
        self._ended = False
        self.text = ""
        self.count = 0

    def add(self, token: int) -> str:
        """The text that a token completes: nothing at the end of the answer and after it, and inside of a character.

        A negative token stands for none.
        """
        if token < 0 or self._ended:
            return ""
        self.count += 1
        if token == self._eos:
            self._ended = True
            return ""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if text.endswith("\ufffd"):  # a character may need several tokens
            return ""
        new, self.text = text[len(self.text) :], text
        return new


def question_document(
    model: Bagel, tokenizer: Tokenizer, question: str, picture: Image.Image | None, system: str = ""
) -> Document:
    """A question after the picture that it is about, if there is one; system: a text before both."""
    document = system_text(tokenizer, system)
    if picture is not None:
        document.append(seen(model, picture))
    return [*document, TextSegment(tokenizer.prompt(question))]


def seen(model: Bagel, picture: Image.Image) -> ViTSegment:
    """A picture as it is seen by who answers questions about it."""
    return ViTSegment(model.config.vit_transform(as_seen(picture)).to(model.device, model.dtype))


def answer(
    model: Bagel, tokenizer: Tokenizer, questions: Sequence[tuple[Image.Image, str]], max_tokens: int = 256
) -> list[str]:
    """Greedy answers to questions about pictures, in one batch, by the weights as they are now."""
    documents = [question_document(model, tokenizer, question, picture) for picture, question in questions]
    with torch.inference_mode():
        answers = decode_text(model, model.prefill(documents), DecodingSettings(max_tokens))
    return [tokenizer.decode(ids) for ids in answers]
