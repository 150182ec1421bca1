"""Questions, about pictures or not, and the answers to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from hyperbagel.bagel.appearance import as_seen
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, TextSegment, ViTSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text


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
    document: Document = [TextSegment(tokenizer.prompt(question))]
    if picture is None:
        return document
    return [ViTSegment(model.config.vit_transform(as_seen(picture)).to(model.device, model.dtype)), *document]


def answer(
    model: Bagel, tokenizer: Tokenizer, questions: Sequence[tuple[Image.Image, str]], max_tokens: int = 256
) -> list[str]:
    """Greedy answers to questions about pictures, in one batch, by the weights as they are now."""
    documents = [question_document(model, tokenizer, question, picture) for picture, question in questions]
    with torch.inference_mode():
        answers = decode_text(model, model.prefill(documents), DecodingSettings(max_tokens))
    return [tokenizer.decode(ids) for ids in answers]
