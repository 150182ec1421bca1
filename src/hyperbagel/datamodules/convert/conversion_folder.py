"""The folder of a conversion: finished shards in it, and what it takes to continue in a hidden folder."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from hyperbagel.datamodules.convert.reports import ShardReport
from hyperbagel.datamodules.convert.rows import RowSource
from hyperbagel.files import write_json
from hyperbagel.messages import clip

log = logging.getLogger(__name__)

STATE = ".conversion"
"""Folder inside the output folder for what a conversion has to remember."""

_TEMPORARY = "temporary"


def temporary_folder(out: Path) -> Path:
    """Where things may be put that are removed when the conversion into `out` is complete; it is not made here.

    Raises FileExistsError when `out` has shards that no conversion wrote.
    """
    state = out / STATE
    if not (state / "settings.json").is_file() and (shards := sorted(out.glob("*.tar"))):
        raise FileExistsError(f"{shards[0]} exists; write to a folder without shards")
    return state / _TEMPORARY


@dataclass(frozen=True, slots=True)
class ConversionFolder:
    """Where a conversion writes and how it names and cuts its shards."""

    out: Path
    name: str
    shard_size: int

    @property
    def state(self) -> Path:
        """Folder of reports and unfinished shards."""
        return self.out / STATE

    def begin(self, fingerprint: Mapping[str, Any], resume: bool) -> None:
        """Make the folders, or see that what is there is the same conversion, which begins anew when its data changed.

        Raises FileExistsError for another conversion, and for a complete one of files that are gone.
        """
        settings = self.state / "settings.json"
        if not settings.is_file():
            temporary_folder(self.out)
            self.state.mkdir(parents=True, exist_ok=True)
            write_json(settings, fingerprint)
            return
        if not resume:
            raise FileExistsError(f"{self.out} has a conversion in it; continue it with resume, or write elsewhere")
        before = json.loads(settings.read_text())
        keys = sorted(before.keys() | fingerprint.keys())
        pairs = [(key, before.get(key), fingerprint.get(key)) for key in keys]
        changed = {
            key: f"{key} was {clip(repr(old), 100)}, now {clip(repr(new), 100)}"
            for key, old, new in pairs
            if old != new
        }
        if not changed.keys() - {"src"}:
            return  # the data set may have been moved
        if changed.keys() - {"rows", "files"}:
            raise FileExistsError(
                f"{self.out} has another conversion in it ({', '.join(changed.values())}; `rows` stands for the data "
                "set's files); repeat it as it was, or write elsewhere"
            )
        files = f"{before['files']:,} files then, {fingerprint['files']:,} now"
        if fingerprint["files"] < before["files"] and (self.out / "conversion.json").is_file():
            raise FileExistsError(
                f"{self.out}: the data set changed since it was converted, and files are gone ({files}); documents of "
                f"them would be lost: write elsewhere, or remove {self.out} to convert it anew"
            )
        log.warning("%s: the data set changed since it was converted (%s); it is converted anew", self.out, files)
        self._clear()
        write_json(settings, fingerprint)

    def _clear(self) -> None:
        """Remove all that was written, the settings last, so that a stop in between is noticed."""
        (self.out / "conversion.json").unlink(missing_ok=True)
        reports = [path for path in self.state.glob("*.json") if path.name != "settings.json"]
        for path in [*self.state.glob("*.tar*"), *(self.out / f"{report.stem}.tar" for report in reports), *reports]:
            path.unlink(missing_ok=True)

    def shard(self, unit: int, source: RowSource, part: int) -> str:
        """Name of a shard without extension."""
        return f"{self.name}-{unit:06d}" + (f"-{part:04d}" if source.streamed else "")

    def unmoved(self, shard: str) -> Path:
        """A shard that is complete but not yet in its place."""
        return self.state / f"{shard}.0.tar"

    def finished(self, shard: str) -> ShardReport | None:
        """The report of a shard that is in its place, or was about to be moved there."""
        report = ShardReport.load(self.state / f"{shard}.json")
        if report is None:
            return None
        target = self.out / f"{shard}.tar"
        if report.written and not target.exists():
            if not self.unmoved(shard).exists():
                return None
            os.replace(self.unmoved(shard), target)
        return report

    def reports(self, unit: int, source: RowSource) -> list[ShardReport]:
        """Those of the finished shards of a unit, in order; the last one says whether it is the unit's last."""
        found: list[ShardReport] = []
        for part in count():
            report = self.finished(self.shard(unit, source, part))
            if report is None:
                return found
            found.append(report)
            if report.last:
                return found
        raise AssertionError("count() does not end")

    def end(self) -> None:
        """Remove what is no longer needed."""
        shutil.rmtree(self.state / _TEMPORARY, ignore_errors=True)
