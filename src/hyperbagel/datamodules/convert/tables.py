"""Tables of pictures and captions: comma- or tab-separated rows, read without holding the file in memory.

A row may go on over lines where a quotation mark encloses them. A mark that encloses other rows was not meant so: each
of their lines is then read by itself, so that one stray mark costs one row at most.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from hyperbagel.datamodules.convert.errors import BadRowError, FormatError
from hyperbagel.datamodules.convert.lines import decode, open_text, text_lines
from hyperbagel.datamodules.convert.pictures import PICTURE_SUFFIXES
from hyperbagel.datamodules.convert.rows import FileSlice, Row
from hyperbagel.datamodules.skipped import Skip
from hyperbagel.messages import shown

_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class TableDialect:
    """How rows are written.

    delimiter: between columns; quoted: whether quotation marks may enclose a field; columns: names of the columns;
    pictures: number of the column with the pictures' names.
    """

    delimiter: str = ","
    quoted: bool = True
    columns: tuple[str, ...] = ()
    pictures: int = 0

    @property
    def lenient(self) -> bool:
        """Whether marks that enclose nothing are taken as text: tabs hardly occur in texts, commas do."""
        return self.delimiter == "\t"


@dataclass(frozen=True, slots=True)
class TableRecord:
    """A row of a table. fields: its columns, or why there are none; start: first byte; line: number of its line."""

    fields: list[str] | BadRowError
    start: int
    line: int


@dataclass(frozen=True)
class TableRows(FileSlice):
    """Rows of a table. dialect: how they are written."""

    dialect: TableDialect

    def read(self) -> Iterator[Row]:
        """Split the rows into their columns."""
        with self.path.open("rb") as file:
            for record in table_records(file, self.dialect, self.start, self.first):
                if record.start >= self.stop:
                    return
                yield Row(f"{self.path}, line {record.line}", self._named(record.fields))

    def _named(self, fields: list[str] | BadRowError) -> Mapping[str, Any] | BadRowError:
        if isinstance(fields, BadRowError):
            return fields
        columns = self.dialect.columns
        if len(fields) < len(columns) or any(cell.strip() for cell in fields[len(columns) :]):
            message = f"{len(fields)} columns instead of {len(columns)} ({', '.join(columns)})"
            return BadRowError(Skip.BAD_SCHEMA, message)
        if [cell.strip() for cell in fields[: len(columns)]] == list(columns):
            return BadRowError(Skip.BAD_SCHEMA, "the names of the columns once more")
        return {name: cell for name, cell in zip(columns, fields, strict=False) if name}


class _Lines:
    """Lines of a file from byte `start` on, which can be looked at before they are taken."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        file.seek(start)
        self._source = text_lines(file)
        self._ahead: deque[bytes] = deque()

    def look(self, number: int) -> bytes | None:
        """The line after `number` others, None after the last."""
        while len(self._ahead) <= number:
            line = next(self._source, None)
            if line is None:
                return None
            self._ahead.append(line)
        return self._ahead[number]

    def texts(self) -> Iterator[str]:
        """All from here on, none taken."""
        number = 0
        while (line := self.look(number)) is not None:
            yield decode(line)
            number += 1

    def take(self, count: int) -> int:
        """Go on by some lines; gives their bytes."""
        return sum(len(self._ahead.popleft()) for _ in range(count))


def table_records(file: BinaryIO, dialect: TableDialect, start: int, line: int) -> Iterator[TableRecord]:
    """Rows of a table from byte `start` on, which is in line number `line`; rows without content are passed over."""
    lines = _Lines(file, start)
    while (first := lines.look(0)) is not None:
        fields, count = _fields(decode(first), lines, dialect)
        if isinstance(fields, BadRowError) or any(not cell.isspace() for cell in fields if cell):
            yield TableRecord(fields, start, line)
        start += lines.take(count)
        line += count


def _fields(text: str, lines: _Lines, dialect: TableDialect) -> tuple[list[str] | BadRowError, int]:
    """The columns of the row that begins with the line `text`, and its number of lines."""
    plain = text.rstrip("\r\n")
    if "\0" in plain:
        return BadRowError(Skip.BAD_SCHEMA, "the line holds a NUL byte, which no text has"), 1
    if not dialect.quoted or '"' not in plain:
        return plain.split(dialect.delimiter), 1
    reader = csv.reader(lines.texts(), delimiter=dialect.delimiter, strict=True)
    try:
        fields = next(reader)
        problem = _problem(fields, dialect) if reader.line_num > 1 else None
        width = len(dialect.columns)
        if problem is None and not (dialect.lenient and width and len(fields) != width):
            return fields, reader.line_num
    except csv.Error as error:
        problem = str(error)
    if dialect.lenient:
        return plain.split(dialect.delimiter), 1
    message = (
        f"a quotation mark does not close where a row ends ({problem}); enclose a text in marks, double those in it"
    )
    return BadRowError(Skip.BAD_SCHEMA, message), 1


def _problem(fields: Sequence[str], dialect: TableDialect) -> str | None:
    """What is wrong with a row over several lines, None where it is as a text of several lines is written."""
    width = len(dialect.columns)
    if width == 0:
        return "names of columns over several lines"
    if len(fields) != width:
        return f"{len(fields)} columns instead of {width}"
    name = fields[dialect.pictures]
    for column, field in enumerate(fields):
        if "\n" not in field and "\r" not in field:
            continue
        if dialect.lenient and dialect.delimiter in field:
            return "it would take in tabs and line ends"
        for number, inner in enumerate(field.replace("\r", "\n").split("\n")):
            cells = inner.split(dialect.delimiter)
            position = dialect.pictures - (0 if number else column)
            if len(cells) > 1 and 0 <= position < len(cells) and _like_name(cells[position], name):
                return f"it would take in the row of {shown(cells[position])}"
    return None


def _like_name(cell: str, name: str) -> bool:
    """Whether a cell looks like a picture's name: by its ending, or as another one does except for its numbers."""
    cell = cell.strip(' "')
    return names_picture(cell) or (_DIGITS.sub("0", cell) == _DIGITS.sub("0", name) and any(map(str.isdigit, cell)))


def names_picture(cell: str) -> bool:
    """Whether a cell of a table ends as the name of a picture does."""
    return cell.lower().endswith(tuple(PICTURE_SUFFIXES))


def read_header(path: Path, dialect: TableDialect) -> tuple[TableDialect, int, int]:
    """The dialect with the columns that the first row names, first byte of the rows, and number of their line.

    Raises FileNotFoundError, and FormatError for an empty file, for names that occur twice and for a row without names.
    """
    with open_text(path) as file:
        records = table_records(file, dialect, 0, 1)
        record = next(records, None)
        if record is None:
            raise FormatError(f"{path} has no rows")
        place = f"{path}, line {record.line}"
        if isinstance(record.fields, BadRowError):
            raise FormatError(f"{place}: no names of columns: {record.fields}")
        following = next(records, None)
    columns = [cell.strip() for cell in record.fields]
    while columns and not columns[-1]:
        columns.pop()
    if twice := [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]:
        raise FormatError(f"{place}: the column {shown(twice[0])} is there twice; give each its own name")
    if any(map(names_picture, columns)):
        raise FormatError(f"{place}: a row, not names of columns; put a line such as file_name,text above it")
    if len(columns) == 1 and (other := next((mark for mark in ";\t," if mark in columns[0]), None)):
        shape = "commas" if dialect.delimiter == "," else "tabs"
        raise FormatError(f"{place}: its columns are separated by {other!r}; separate them by {shape}")
    if following is None:
        raise FormatError(f"{path} has no rows")
    return replace(dialect, columns=tuple(columns)), following.start, following.line


def slice_table(path: Path, size: int, dialect: TableDialect, start: int = 0, line: int = 1) -> list[TableRows]:
    """Slices of `size` rows of a table, from byte `start` in line number `line` on."""
    slices: list[TableRows] = []
    first, count = line, 0
    with open_text(path) as file:
        for record in table_records(file, dialect, start, line):
            if count == size:
                slices.append(TableRows(count, path, start, record.start, first, dialect))
                count = 0
            if count == 0:
                start, first = record.start, record.line
            count += 1
    if count:
        slices.append(TableRows(count, path, start, path.stat().st_size, first, dialect))
    return slices
