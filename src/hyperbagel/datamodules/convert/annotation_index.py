"""Annotations by the name of their picture, on disk: for joining them with archives that can only be read in order."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from hyperbagel.datamodules.convert.archives import archive_members
from hyperbagel.datamodules.convert.errors import BadRowError, RowCause
from hyperbagel.datamodules.convert.names import name_key, plain_name
from hyperbagel.datamodules.convert.rows import Row, RowSource
from hyperbagel.datamodules.skipped import Skip
from hyperbagel.files import WriteError, whole_file
from hyperbagel.messages import shown

NameOf = Callable[[Mapping[str, Any]], object]
"""Gives the picture's name of an annotation."""

IMAGE = "__image__"
"""Field under which a row from an archive has its encoded picture."""


@dataclass(frozen=True, slots=True)
class AnnotationIndex:
    """An SQLite file with annotations by name; the first folder of a name is its group."""

    path: Path

    def build(self, sources: Iterable[RowSource], name_of: NameOf) -> None:
        """Read all annotations, unless that was done."""
        if self.path.is_file():
            return
        with whole_file(self.path) as unfinished:
            unfinished.unlink(missing_ok=True)
            try:
                self._fill(unfinished, sources, name_of)
            except sqlite3.OperationalError as error:  # a full disk, which SQLite does not report as an OSError
                raise WriteError(f"{self.path}: not written: {error}; make room, or write elsewhere") from error

    def _fill(self, unfinished: Path, sources: Iterable[RowSource], name_of: NameOf) -> None:
        with closing(sqlite3.connect(unfinished)) as base, base:
            base.execute("CREATE TABLE good (name TEXT PRIMARY KEY, folder TEXT, place TEXT, data TEXT) WITHOUT ROWID")
            base.execute("CREATE TABLE bad (place TEXT, cause TEXT, message TEXT)")
            rows = (row for source in sources for row in source.rows())
            for row in tqdm(rows, "index annotations", unit="row"):
                self._insert(base, row, name_of)
            base.execute("CREATE INDEX folders ON good (folder)")

    def _insert(self, base: sqlite3.Connection, row: Row, name_of: NameOf) -> None:
        try:
            if isinstance(row.data, BadRowError):
                raise row.data
            name = plain_name(name_of(row.data))
            values = (_text(name_key(name)), _text(name.partition("/")[0]), _text(row.place), json.dumps(row.data))
            if not base.execute("INSERT OR IGNORE INTO good VALUES (?, ?, ?, ?)", values).rowcount:
                raise BadRowError(Skip.DUPLICATE_KEY, f"an earlier line has the same picture {shown(name)}")
        except BadRowError as error:
            base.execute("INSERT INTO bad VALUES (?, ?, ?)", (_text(row.place), str(error.cause), _text(str(error))))

    def query(self, sql: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """Rows of an SQL query."""
        with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as base:
            yield from base.execute(sql, values)

    def folders(self) -> dict[str, int]:
        """Number of annotations of each folder, in order."""
        return dict(self.query("SELECT folder, COUNT(*) FROM good GROUP BY folder ORDER BY folder"))

    def count_bad(self) -> int:
        """Number of lines that are no annotation."""
        return int(next(self.query("SELECT COUNT(*) FROM bad"))[0])


@dataclass(frozen=True)
class ArchiveRows(RowSource):
    """Pictures of an archive with their annotations, then annotations whose picture the archive does not have.

    group: folder of the names that belong to the archive, which its members may leave out. expected: number of its
    annotations, so that a change of them is noticed.
    """

    parts: tuple[Path, ...]
    group: str
    index: AnnotationIndex
    expected: int
    streamed: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The archive, its size and the number of its annotations."""
        return f"{self.group}:{sum(path.stat().st_size for path in self.parts)}:{self.expected}x{self.count}"

    def read(self) -> Iterator[Row]:
        """In the order of the archive."""
        seen: set[str] = set()
        with archive_members(self.parts) as members:
            for member, content in members:
                name = _text(name_key(member if "/" in member else f"{self.group}/{member}"))
                place = f"{self.parts[0]}, member {member!r}"
                found = next(self.index.query("SELECT data FROM good WHERE name = ?", name), None)
                if found is None:
                    yield Row(place, BadRowError(RowCause.NO_ANNOTATION, "no line of the annotations is about it"))
                elif name in seen:
                    yield Row(place, BadRowError(Skip.DUPLICATE_KEY, "the archive has it twice"))
                else:
                    seen.add(name)
                    yield Row(place, json.loads(found[0]) | {IMAGE: content.read()})
        for name, place in self.index.query("SELECT name, place FROM good WHERE folder = ? ORDER BY name", self.group):
            if name not in seen:
                message = f"no picture {shown(name)} in {self.parts[0]}"
                yield Row(place, BadRowError(RowCause.MISSING_IMAGE, message))


@dataclass(frozen=True)
class UnmatchedRows(RowSource):
    """Annotations that belong to none of the archives that are there, and lines that are no annotations."""

    index: AnnotationIndex
    groups: tuple[str, ...]

    @property
    def name(self) -> str:
        """The number of them."""
        return f"unmatched x{self.count}"

    def read(self) -> Iterator[Row]:
        """All of them, as bad rows."""
        for place, cause, message in self.index.query("SELECT place, cause, message FROM bad ORDER BY rowid"):
            yield Row(place, BadRowError(_cause(cause), message))
        for folder, name, place in self.index.query("SELECT folder, name, place FROM good ORDER BY name"):
            if folder not in self.groups:
                message = f"the archive of {shown(name)} is not there"
                yield Row(place, BadRowError(RowCause.NOT_DOWNLOADED, message))


def archive_sources(
    archives: Mapping[str, Sequence[Path]], index: AnnotationIndex, limit: int | None
) -> list[RowSource]:
    """Sources of all rows. limit: number of rows, taken from the archives in order."""
    annotated = index.folders()
    sources: list[RowSource] = []
    left = limit
    for group, parts in archives.items():
        expected = annotated.get(group, 0)
        if left == 0 or (left is not None and not expected):
            continue
        count = None if left is None else min(left, expected)
        sources.append(ArchiveRows(count, tuple(parts), group, index, expected))
        left = None if left is None or count is None else left - count
    if limit is None:
        absent = sum(number for folder, number in annotated.items() if folder not in archives)
        sources.append(UnmatchedRows(index.count_bad() + absent, index, tuple(archives)))
    return sources


def _text(name: str) -> str:
    """A text as SQLite takes it, whatever bytes it was read from."""
    return name.encode(errors="backslashreplace").decode()


def _cause(name: str) -> RowCause | Skip:
    return RowCause(name) if name in set(RowCause) else Skip(name)
