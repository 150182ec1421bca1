"""Reports of what became of the rows of each shard, from which a stopped conversion also continues."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hyperbagel.datamodules.convert.errors import EXPECTED, BadRowError
from hyperbagel.files import write_json
from hyperbagel.messages import clip

_EXAMPLES = 3
_LONGEST_NAME = 5000  # names are told whole


@dataclass(slots=True)
class ShardReport:
    """The rows of one shard. skipped: bad rows by cause; examples: the first of each cause; last: of its source."""

    rows: int = 0
    written: int = 0
    bytes: int = 0
    last: bool = True
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, place: str, error: BadRowError) -> None:
        """Count a bad row."""
        cause = str(error.cause)
        self.skipped[cause] = self.skipped.get(cause, 0) + 1
        examples = self.examples.setdefault(cause, [])
        if len(examples) < _EXAMPLES:
            examples.append(f"{clip(place, _LONGEST_NAME)}: {clip(error)}")

    def save(self, path: Path) -> None:
        """Write the file, all or nothing."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> ShardReport | None:
        """The report of a finished shard; None when it is not finished."""
        return cls(**json.loads(path.read_text())) if path.is_file() else None


@dataclass(slots=True)
class ConversionSummary:
    """What a conversion did.

    rows: of the data set that were looked at; written: documents; skipped: bad rows by cause; examples: the first few
    of each cause; shards, bytes: what is in the folder `out` now; kept: shards that were there before this run;
    notes: what else there is to tell of the data set; repeated: whether all was done before, so that nothing was read.

    Examples:
        >>> print(ConversionSummary("shards", rows=3, written=2, shards=1, skipped={"missing_image": 1}))
        2 of 3 rows written to 1 shards (0.0 MB) in shards, 1 skipped
        skipped 1 missing_image, such as
    """

    out: str
    rows: int = 0
    written: int = 0
    shards: int = 0
    bytes: int = 0
    kept: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    repeated: bool = field(default=False, compare=False)

    def add(self, report: ShardReport) -> None:
        """Take over a shard's rows; reports come in the order of the shards."""
        self.rows += report.rows
        self.written += report.written
        self.bytes += report.bytes
        self.shards += report.written > 0
        self.skipped = dict(sorted((Counter(self.skipped) + Counter(report.skipped)).items()))
        for cause, examples in report.examples.items():
            self.examples[cause] = (self.examples.get(cause, []) + examples)[:_EXAMPLES]

    @property
    def bad(self) -> int:
        """Bad rows that count towards `max_skipped`."""
        return sum(count for cause, count in self.skipped.items() if cause not in EXPECTED)

    def __str__(self) -> str:
        left_out = sum(self.skipped.values())
        counts = f"{self.written:,} of {self.rows:,} rows"
        shards = f"{self.shards:,} shards ({self.bytes / 1e6:,.1f} MB) in {clip(self.out, _LONGEST_NAME)}"
        skipped = f", {left_out:,} skipped" if left_out else ""
        if self.repeated:
            told = f"; {skipped[2:]}, see conversion.json" if skipped else ""
            return f"nothing was read again: the conversion is complete, {counts} in {shards}{told}"
        already = f"; {self.kept:,} of them were there already" if self.kept else ""
        lines = [f"{counts} written to {shards}{skipped}{already}"]
        for cause, count in self.skipped.items():
            lines.append(f"skipped {count:,} {cause}, such as")
            lines += [f"    {example}" for example in self.examples.get(cause, [])]
        return "\n".join([*lines, *self.notes])


def total(reports: Iterable[ShardReport], out: Path, kept: int) -> ConversionSummary:
    """All reports together. Raises ValueError for reports in which rows are missing."""
    summary = ConversionSummary(str(out), kept=kept)
    for report in reports:
        summary.add(report)
    if summary.rows != summary.written + sum(summary.skipped.values()):
        raise ValueError(f"{out}: its reports are damaged, as not all rows were written or skipped; convert it anew")
    return summary
