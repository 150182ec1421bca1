"""Conversations: texts and pictures in turns, where what was drawn can be asked about and edited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from hyperbagel.bagel.segments import Document, TextSegment
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION
from hyperbagel.pipeline.answers import ImageLike, opened, seen
from hyperbagel.pipeline.results import Answer, Picture, Piece
from hyperbagel.pipeline.thinking import BEFORE_ANSWER, BEFORE_PICTURE, system_text

if TYPE_CHECKING:
    from hyperbagel.pipeline.painter import Painter
    from hyperbagel.pipeline.pipeline import Pipeline


class Conversation:
    """A document that grows by what is shown, said, answered and drawn. `Pipeline.chat` makes one.

    turns: all of it so far, texts and pictures, in order; it may be changed, as by `del turns[-2:]`.

        chat = pipeline.chat()
        chat.draw("a photo of a red circle")
        chat.draw("Make the circle blue.")
        print(chat.ask("What color is the circle?"))

    Args:
        pipeline: what draws and answers.
        answer_prefix: what answers are made to begin with, as chat models expect.
    """

    def __init__(self, pipeline: Pipeline, answer_prefix: str = "") -> None:
        self._pipeline, self._prefix = pipeline, answer_prefix
        self.turns: list[str | Image.Image] = []

    def show(self, image: ImageLike) -> None:
        """Add a picture, or its file. Raises ImageError for a file that is no picture."""
        self.turns.append(opened(image))

    def ask(
        self,
        question: str,
        *,
        settings: DecodingSettings | None = None,
        seed: int = 0,
        think: bool = False,
        stream: Callable[[Piece], object] | None = None,
    ) -> Answer:
        """The answer to a question about all that was before; both become part of the conversation.

        Arguments and errors as of `Pipeline.ask`.
        """
        texts = self._pipeline.read([question])
        document = self._document([*self.turns, *texts], BEFORE_ANSWER if think else "")
        (answer,) = self._pipeline.answer_after([document], settings, seed, self._prefix, think, stream)
        self.turns += [question, answer.text]
        return answer

    def draw(
        self,
        text: str,
        *,
        steps: int | None = None,
        text_scale: float | None = None,
        image_scale: float = PAPER_EDITING.image_scale,
        seed: int = 0,
        think: bool = False,
    ) -> Picture:
        """A picture as a text says after all that was before: a new one, or where there are pictures, an edit of the
        last. Text and picture become part of the conversation.

        Arguments and errors as of `Pipeline.generate` and `Pipeline.edit`.
        """
        texts = self._pipeline.read([text])
        pictures = [turn for turn in self.turns if isinstance(turn, Image.Image)]
        guidance = replace(PAPER_EDITING, image_scale=image_scale) if pictures else PAPER_GENERATION
        if text_scale is not None:
            guidance = replace(guidance, text_scale=text_scale)
        painter = self._pipeline.painter(guidance, steps)
        document = self._document([*self.turns, *texts], BEFORE_PICTURE if think else "", painter)
        size = painter.shown(pictures[-1])[1] if pictures else self._pipeline.size
        (picture,) = self._pipeline.draw_after(painter, [document], [size], [seed], think=think)
        self.turns += [text, picture.image]
        return picture

    def _document(self, turns: list[str | Image.Image], system: str, painter: Painter | None = None) -> Document:
        """What is read. painter: who will draw, and so sees pictures as the autoencoder does, too."""
        tokenizer = self._pipeline.tokenizer
        segments = system_text(tokenizer, system)
        for turn in turns:
            if isinstance(turn, str):
                segments.append(TextSegment(tokenizer.prompt(turn)))
            elif painter is None:
                segments.append(seen(self._pipeline.model, turn))
            else:
                segments += painter.shown(turn)[0]
        return segments
