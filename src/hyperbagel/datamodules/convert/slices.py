"""Cutting annotation files into slices of a given number of rows, in one pass and without holding them in memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path

from hyperbagel.datamodules.convert.errors import BadRowError, FormatError
from hyperbagel.datamodules.convert.lines import open_data, open_text, text_lines
from hyperbagel.datamodules.convert.rows import (
    JsonItems,
    JsonLines,
    ParquetRows,
    Row,
    RowSource,
    import_pyarrow,
    json_items,
)
from hyperbagel.messages import clip


def slice_json(path: Path, size: int) -> list[JsonLines] | list[JsonItems]:
    """Slices of a file of JSON Lines or with a JSON list; which of the two it is shows in its first character.

    Raises FileNotFoundError, and FormatError when it is neither.
    """
    with open_text(path) as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"{":
        return slice_json_lines(path, size)
    if start == b"[":
        return slice_json_list(path, size)
    raise FormatError(f"{path}: needs a JSON list of objects, or one object a line; it begins with {start!r}")


def slice_json_lines(path: Path, size: int) -> list[JsonLines]:
    """Slices of `size` lines, empty ones not counted."""
    slices: list[JsonLines] = []
    start, first, position, number, count = 0, 1, 0, 0, 0
    with open_text(path) as file:
        for line in text_lines(file):
            position += len(line)
            number += 1
            count += bool(line.strip())
            if count == size:
                slices.append(JsonLines(count, path, start, position, first))
                start, first, count = position, number + 1, 0
    if count:
        slices.append(JsonLines(count, path, start, position, first))
    return slices


def slice_json_list(path: Path, size: int) -> list[JsonItems]:
    """Slices of `size` items. Raises FormatError for a list that is damaged or holds other things than objects."""
    slices: list[JsonItems] = []
    first, count, start, stop = 0, 0, 0, 0
    with open_text(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            for begin, end in json_items(data, depth=0):
                start, stop, count = (start if count else begin), end, count + 1
                if count == size:
                    slices.append(JsonItems(count, path, start, stop, first))
                    first, count = first + count, 0
        except ValueError as error:
            raise FormatError(f"{path}, item {first + count}: not a JSON list of objects: {error}") from error
    if count:
        slices.append(JsonItems(count, path, start, stop, first))
    return slices


def slice_parquet(path: Path, size: int, columns: Sequence[str]) -> list[ParquetRows]:
    """Slices of `size` rows. columns: which to read. Raises FormatError for missing columns or a damaged file."""
    pyarrow = import_pyarrow()
    try:
        with open_data(path), pyarrow.parquet.ParquetFile(path) as file:
            rows, present = file.metadata.num_rows, file.schema_arrow.names
    except pyarrow.ArrowException as error:
        raise FormatError(f"{path}: not a readable Parquet file: {clip(error, 150)}") from error
    wanted = tuple(column for column in columns if column in present)
    return [
        ParquetRows(min(size, rows - start), path, start, min(start + size, rows), start, wanted)
        for start in range(0, rows, size)
    ]


def first_row(sources: Iterable[RowSource], path: Path) -> Row:
    """The first row of a file that can be read, to see its format. Raises FormatError when there is none."""
    problem = None
    for source in sources:
        for row in source.rows():
            if not isinstance(row.data, BadRowError):
                return row
            hint = "; JSON needs a list of objects, or one whole object a line" if isinstance(source, JsonLines) else ""
            problem = problem or f"{row.place}: {row.data}, nor is any other row{hint}"
    raise FormatError(problem or f"{path} has no rows")


def need_keys(row: Row, *alternatives: Sequence[str]) -> None:
    """Raise FormatError unless a row has all keys of one of the alternatives."""
    assert not isinstance(row.data, BadRowError)
    if not any(all(key in row.data for key in keys) for keys in alternatives):
        missing = next(key for key in alternatives[0] if key not in row.data)
        needed = " or ".join("(" + ", ".join(keys) + ")" for keys in alternatives)
        raise FormatError(
            f"{row.place}: no key {missing!r}; it has {clip(', '.join(row.data), 100)}, but needs {needed}"
        )
