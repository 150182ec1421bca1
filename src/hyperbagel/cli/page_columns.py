"""The columns of the interactive page, one for each network, and what is said in words about results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from hyperbagel.cli.studio import Reply
from hyperbagel.pipeline.results import Picture


@dataclass(frozen=True)
class Column:
    """Where the pictures of one network go, as gradio's components."""

    box: Any
    picture: Any
    cost: Any


class Columns(dict[str, Column]):
    """The columns of one tab, by network."""

    @property
    def parts(self) -> list[Any]:
        """What changes with pictures."""
        return [part for column in self.values() for part in (column.picture, column.cost)]

    @property
    def pictures(self) -> list[Any]:
        """The components of pictures."""
        return [column.picture for column in self.values()]

    def showing(
        self, drawn: Mapping[str, Picture], before: Image.Image | None = None, slowest: str | None = None
    ) -> dict[Any, Any]:
        """What to show in all columns: a picture of each network, or none.

        before: what was edited, to be laid under the pictures; slowest: the network that others are compared with.
        """
        values: dict[Any, Any] = {}
        for name, column in self.items():
            if (picture := drawn.get(name)) is None:
                values |= {column.picture: None, column.cost: ""}
                continue
            image, told = picture.image, f"**{name}**: {cost(picture)}"
            if slowest is not None and name != slowest:
                told = f"{told}  \n**{drawn[slowest].seconds / picture.seconds:.1f} times** as fast as {slowest}"
            values[column.picture] = image if before is None else (before.resize(image.size), image)
            values[column.cost] = f"{told}\n\n> {picture.thought}" if picture.thought else told
        return values

    def filling(
        self, pictures: Iterator[tuple[str, Picture]], before: Image.Image | None = None
    ) -> Iterator[dict[Any, Any]]:
        """What to show from the beginning on: each picture as soon as it is there; at the end, how they compare."""
        drawn: dict[str, Picture] = {}
        yield self.showing(drawn)
        for name, picture in pictures:
            drawn[name] = picture
            yield self.showing(drawn, before)
        yield self.showing(drawn, before, slowest=max(drawn, key=lambda name: drawn[name].seconds))


def first(*shown: Any) -> str | None:
    """The file of the first picture that is there; of a slider, the picture that was made."""
    files = [pair[-1] if isinstance(pair, tuple | list) else pair for pair in shown]
    return next((file for file in files if file), None)


def cost(picture: Picture) -> str:
    """What a picture cost."""
    return f"{picture.nfe} NFE, {_milliseconds(picture.seconds)}, {picture.image.width}x{picture.image.height}"


def speed(reply: Reply) -> str:
    """How an answer was written."""
    told = f"{reply.tokens} tokens in {reply.passes} passes ({reply.tokens / max(reply.passes, 1):.2f} tokens a pass)"
    if not reply.seconds:
        return told
    return f"{told}, {_milliseconds(reply.seconds)}, {reply.tokens / reply.seconds:.0f} tokens/s"


def compared(reply: Reply, plain: Reply) -> str:
    """An answer with the draft head beside the same without it, in Markdown."""
    times = reply.tokens * plain.seconds / (plain.tokens * reply.seconds)
    return f"{speed(reply)}  \nwithout the draft head {speed(plain)}: **{times:.1f} times** as fast with it"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.{1 if seconds < 0.01 else 0}f} ms"
