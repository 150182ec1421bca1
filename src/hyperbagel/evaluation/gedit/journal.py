"""A file of verdicts, one JSON line each, by which an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from hyperbagel.evaluation.gedit.aggregate import SampleResult
from hyperbagel.files import naming


class Journal:
    """Verdicts on disk. The first line names the run; every later line is one `SampleResult`.

    path: the file, continued if it exists; None keeps nothing. header: what must be equal for a file to be continued.
    Raises ValueError if the file belongs to another run or is no journal.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        self.path = path
        self.header = dict(header)
        self.rows: list[SampleResult] = []
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        if self.path is None:
            return self
        whole_lines = self._read() if self.path.exists() else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        # A line that was being written when the run stopped is cut off, lest the next one is appended to it.
        self._file.truncate(sum(len(line) for line in whole_lines))
        if not whole_lines:
            self._write(self.header)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, row: SampleResult) -> None:
        """Keep one verdict; it is on disk when this returns."""
        self.rows.append(row)
        self._write(asdict(row))

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            assert self.path is not None
            with naming(self.path):
                self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
                self._file.flush()

    def _read(self) -> list[bytes]:
        """Fill `rows`; the lines (bytes) that are complete."""
        assert self.path is not None
        lines = [line for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        if not lines:
            return []
        try:
            header, *rows = [json.loads(line) for line in lines]
            self.rows = [
                SampleResult(**{**row, "asked": tuple(row["asked"]), "reasons": tuple(row["reasons"])}) for row in rows
            ]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.path}: not a journal of verdicts ({error}); name another file") from error
        if header != self.header:
            raise ValueError(
                f"{self.path}: holds the verdicts of another run ({header}, now {self.header}); "
                "delete it or name another file, figures of different runs must not be mixed"
            )
        return lines
