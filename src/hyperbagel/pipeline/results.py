"""What a pipeline hands out: pictures and answers, with what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from PIL import Image

from hyperbagel.files import write_picture


@dataclass(frozen=True)
class Picture:
    """A drawn picture and what it cost."""

    image: Image.Image
    """The picture, RGB."""
    nfe: int
    """Evaluations of the generation network."""
    seconds: float
    """From text to pixels; of a picture that was drawn with others, its share."""
    thought: str = ""
    """What the model wrote before it drew, in think mode."""

    def save(self, path: str | Path) -> None:
        """Write a file, in the format that its name says. Raises ValueError for one that is no picture's."""
        write_picture(path, self.image)

    def show(self) -> None:
        """Open it in the viewer of the system; a notebook shows it by itself."""
        self.image.show()

    def _repr_png_(self) -> bytes:
        shown = self.image._repr_png_()
        assert shown is not None  # what has a picture has pixels
        return shown


@dataclass(frozen=True)
class Answer:
    """What the model said, and what that cost."""

    text: str
    """The answer."""
    tokens: int
    """Its length, the token that ends it included."""
    passes: int
    """Passes of the model, also for others that were written with it: as many as tokens without a draft head, and fewer
    with one."""
    seconds: float
    """From the question to the last token; of an answer that was written with others, its share."""
    thought: str = ""
    """What the model wrote before the answer, in think mode."""

    @property
    def tokens_per_second(self) -> float:
        """Speed, reading the question included."""
        return self.tokens / self.seconds

    def __str__(self) -> str:
        return self.text


class Piece(str):
    """A bit of the text of an answer, as it is written: a text like any other, which also tells where it is from."""

    drafted: bool
    """Whether the draft head proposed it and the model accepted it."""
    tokens: int
    """Tokens of the answer so far."""
    passes: int
    """Passes of the model so far."""

    def __new__(cls, text: str, drafted: bool, tokens: int, passes: int) -> Self:
        """A text with what is known of it."""
        piece = super().__new__(cls, text)
        piece.drafted, piece.tokens, piece.passes = drafted, tokens, passes
        return piece
