"""Rows of annotation files, read in slices: a slice can be read by any process, and no file is held in memory.

A slice knows its place in the file, so that reading starts there: byte ranges of JSON Lines and JSON lists, row ranges
of Parquet files. Tables are in `tables.py`.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from mmap import mmap
from pathlib import Path
from typing import Any, ClassVar

from hyperbagel.datamodules.convert.errors import BadRowError, FormatError
from hyperbagel.datamodules.convert.lines import text_lines
from hyperbagel.datamodules.skipped import Skip
from hyperbagel.messages import clip, shown

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[{}\[\]]', re.DOTALL)
"""What gives a JSON text its structure: whole strings, so that brackets in them do not count, and brackets."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row. place: file and line for people; data: its fields, or why they cannot be read."""

    place: str
    data: Mapping[str, Any] | BadRowError


@dataclass(frozen=True)
class RowSource(ABC):
    """Rows that one process reads in order. count: number of rows, None when reading has to tell.

    `streamed` sources can only be read from the start and fill several shards; the others fill one.
    """

    count: int | None
    streamed: ClassVar[bool] = False

    @abstractmethod
    def read(self) -> Iterator[Row]:
        """All rows from the first on, possibly more than `count`."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What tells this source from all others of the data set and changes with it."""

    def rows(self) -> Iterator[Row]:
        """The first `count` rows."""
        return islice(self.read(), self.count)


@dataclass(frozen=True)
class FileSlice(RowSource):
    """Part of a file. start, stop: bytes, or rows of a Parquet file; first: number of the first row, for people."""

    path: Path
    start: int
    stop: int
    first: int

    @property
    def name(self) -> str:
        """The file with its folder, and the range."""
        return f"{self.path.parent.name}/{self.path.name}[{self.start}:{self.stop}]x{self.count}"


@dataclass(frozen=True)
class JsonLines(FileSlice):
    """Lines with a JSON object each; empty lines are passed over."""

    def read(self) -> Iterator[Row]:
        """Parse the lines."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            number, position = self.first, self.start
            for line in text_lines(file):
                if position >= self.stop:
                    return
                position += len(line)
                if line.strip():
                    place = f"{self.path}, line {number}"
                    yield Row(place, parse_object(line))
                number += 1


@dataclass(frozen=True)
class JsonItems(FileSlice):
    """Items of a JSON list."""

    def read(self) -> Iterator[Row]:
        """Parse the items."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.stop - self.start)
        for number, (start, stop) in enumerate(json_items(data, depth=1), self.first):
            yield Row(f"{self.path}, item {number}", parse_object(data[start:stop]))


@dataclass(frozen=True)
class ParquetRows(FileSlice):
    """Rows of a Parquet file. columns: which to read; start, stop: row numbers."""

    columns: tuple[str, ...]

    def read(self) -> Iterator[Row]:
        """Read batch by batch. Raises FormatError for a damaged file."""
        pyarrow = import_pyarrow()
        try:
            with pyarrow.parquet.ParquetFile(self.path, buffer_size=2**20) as file:
                groups, position = _row_groups(file.metadata, self.start, self.stop)
                for batch in file.iter_batches(16, row_groups=groups, columns=list(self.columns), use_threads=False):
                    first = max(position, self.start)
                    position += len(batch)
                    if first >= position:
                        continue
                    wanted = batch.slice(first - position + len(batch), self.stop - first)
                    for number, row in enumerate(wanted.to_pylist(), first):
                        yield Row(f"{self.path}, row {number}", row)
        except (pyarrow.ArrowException, OSError) as error:
            place = f"{self.path}, rows {self.start} to {self.stop}"
            raise FormatError(f"{place}: not a readable Parquet file: {clip(error, 150)}") from error


@dataclass(frozen=True)
class ListedRows(RowSource):
    """Rows in memory, for small things. origin: the file they come from; items: (number, fields)."""

    origin: Path
    items: tuple[tuple[int, Mapping[str, Any]], ...]

    @property
    def name(self) -> str:
        """The file and the first number."""
        return f"{self.origin.name}[{self.items[0][0] if self.items else 0}]x{self.count}"

    def read(self) -> Iterator[Row]:
        """One after the other."""
        for number, fields in self.items:
            yield Row(f"{self.origin}, line {number}", fields)


def parse_object(data: bytes) -> Mapping[str, Any] | BadRowError:
    """A JSON object, or why it is none."""
    try:
        content = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        return BadRowError(Skip.BAD_JSON, f"not readable as JSON: {error}")
    if not isinstance(content, dict):
        return BadRowError(Skip.BAD_SCHEMA, f"an object with fields is needed, not {type(content).__name__}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of JSON, in which no key may occur twice: the last one would win without a word."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} is there twice")
    return content


def json_items(data: bytes | mmap, depth: int) -> Iterator[tuple[int, int]]:
    """First byte and byte after the last of each object or list in a JSON list.

    depth: 0 when `data` begins at or before the list's bracket, 1 when it begins inside the list. Raises ValueError
    when the list does not end properly (only for depth 0).
    """
    whole, start, end = depth == 0, 0, 0
    for token in _TOKEN.finditer(data):
        bracket = token[0]
        if bracket in (b"{", b"["):
            if whole and depth == 0 and end:
                raise ValueError(f"something follows the list, at byte {token.start()}")
            if depth == 1:
                start = token.start()
                if data[end:start].strip() not in (b"", b","):
                    raise ValueError(f"what stands between byte {end} and byte {start} is no object")
            depth += 1
            end = token.end() if depth == 1 else end
        elif bracket in (b"}", b"]"):
            depth -= 1
            if depth == 1:
                end = token.end()
                yield start, end
    if whole and (depth != 0 or data[end:].strip() != b"]"):
        raise ValueError(f"the list is cut off, or holds something else, after byte {end}")


def _row_groups(metadata: Any, start: int, stop: int) -> tuple[list[int], int]:
    """The row groups of a Parquet file that hold the rows from start to stop, and the first row in them."""
    groups: list[int] = []
    first, position = 0, 0
    for group in range(metadata.num_row_groups):
        end = position + metadata.row_group(group).num_rows
        if end > start and position < stop:
            first = first if groups else position
            groups.append(group)
        position = end
    return groups, first


def import_pyarrow() -> Any:
    """The Parquet reader, which is an optional dependency. Raises ImportError that says how to get it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install pyarrow") from error
    return pyarrow
