"""Tables of figures, as Markdown and as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Final

MISSING: Final = "-"
"""In the place of a figure that is not there."""


@dataclass(frozen=True)
class Table:
    """Figures as texts. title: what they are of; rows: name -> column -> figure; a figure may be missing."""

    title: str
    rows: Mapping[str, Mapping[str, str]]

    @property
    def columns(self) -> list[str]:
        """Of all rows, in the order in which they come."""
        return list(dict.fromkeys(column for figures in self.rows.values() for column in figures))

    def lines(self) -> list[list[str]]:
        """The names of columns after an empty cell, then of each row its name and its figures."""
        head = ["", *(column.removeprefix(f"{self.title}/") for column in self.columns)]
        return [head, *([name, *(row.get(c, MISSING) for c in self.columns)] for name, row in self.rows.items())]

    def markdown(self) -> str:
        """A heading and the table, aligned for a terminal."""
        lines = self.lines()
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
        body = [
            " | ".join(
                [
                    first.ljust(widths[0]),
                    *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)),
                ]
            )
            for first, *rest in lines
        ]
        return "\n".join([f"### {self.title}", "", *(f"| {line} |" for line in body)])

    def html(self) -> str:
        """A heading and the table."""
        head, *body = self.lines()
        lines = [f"<h2>{escape(self.title)}</h2>", '<div class="wide"><table>', f"<tr>{_cells(head, 'th')}</tr>"]
        lines += [f"<tr><th>{escape(name)}</th>{_cells(cells, 'td')}</tr>" for name, *cells in body]
        return "\n".join([*lines, "</table></div>"])


def _cells(texts: list[str], tag: str) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)
