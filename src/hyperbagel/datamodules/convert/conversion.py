"""Running a conversion: rows in, shards out, in several processes, to be stopped and continued at any time.

Every source of rows is a unit of work whose shards depend on nothing else, so the number of processes and interruptions
leave no trace in the result. A shard is written in the hidden folder `.conversion`, then its report, then it is moved
to its place: what is there is finished, and is not written again.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from itertools import count, islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from hyperbagel.datamodules.convert.archives import Unpacking
from hyperbagel.datamodules.convert.errors import EXPECTED, BadRowError, TooManyBadRowsError
from hyperbagel.datamodules.convert.options import ConvertOptions
from hyperbagel.datamodules.convert.pictures import Draft
from hyperbagel.datamodules.convert.reports import ConversionSummary, ShardReport, total
from hyperbagel.datamodules.convert.rows import Row, RowSource
from hyperbagel.datamodules.convert.workplace import Workplace
from hyperbagel.datamodules.documents import DocumentError
from hyperbagel.datamodules.writer import ShardWriter
from hyperbagel.files import write_json

_JUDGED_FROM = 1000


class Converter(Protocol):
    """Makes documents of rows. It is sent to other processes, so it has to be picklable."""

    def draft(self, row: Mapping[str, Any]) -> Draft:
        """The document of a row; raises BadRowError."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Work for one process: the rows of a source and what makes documents of them."""

    source: RowSource
    converter: Converter


@dataclass(frozen=True)
class Plan:
    """A whole conversion.

    name: of the data set, begins the names of shards; units: in order; settings: what else the result depends on;
    unpackings: archives to unpack first, if there is anything left to convert.
    """

    name: str
    units: Sequence[Unit]
    settings: Mapping[str, Any]
    unpackings: Sequence[Unpacking] = field(default=())

    def fingerprint(self, options: ConvertOptions) -> dict[str, Any]:
        """What has to be the same for a stopped conversion to be continued."""
        digest = hashlib.sha256()
        for unit in self.units:
            digest.update(unit.source.name.encode(errors="replace") + b"\n")
        common = {"shard_size": options.shard_size, "limit": options.limit}
        return {"data": self.name, **self.settings, **common, "rows": digest.hexdigest()[:16]}


def first_rows(units: Sequence[Unit], limit: int | None) -> list[Unit]:
    """The units that hold the first `limit` rows, the last one shortened; units without a known count are kept."""
    kept, left = [], sys.maxsize if limit is None else limit
    for unit in units:
        number = unit.source.count
        if number is None or number <= left:
            kept.append(unit)
        elif left:
            kept.append(replace(unit, source=replace(unit.source, count=left)))
        left -= min(left, number or 0)
    return [unit for unit in kept if unit.source.count != 0]


def run(plan: Plan, out: str | Path, options: ConvertOptions) -> ConversionSummary:
    """Do what is left of a conversion.

    Raises FileExistsError when `out` holds another conversion, and TooManyBadRowsError.
    """
    place = Workplace(Path(out), plan.name, options.shard_size)
    place.begin(plan.fingerprint(options), options.resume)
    done = [place.reports(number, unit.source) for number, unit in enumerate(plan.units)]
    pending = [number for number, reports in enumerate(done) if not reports or not reports[-1].last]
    kept = sum(report.written > 0 for reports in done for report in reports)
    if pending:
        for unpacking in plan.unpackings:
            unpacking.run()
    finished = [report for reports in done if reports and reports[-1].last for report in reports]
    _convert(plan, place, pending, finished, options)
    reports = (report for number, unit in enumerate(plan.units) for report in place.reports(number, unit.source))
    summary = total(reports, place.out, kept)
    _judge(summary, options.max_skipped)
    if not summary.written:
        raise TooManyBadRowsError(f"not one row could be converted: {summary}")
    result = {key: value for key, value in asdict(summary).items() if key not in ("out", "kept")}
    write_json(place.out / "conversion.json", {"settings": plan.fingerprint(options), **result})
    place.end()
    return summary


def _convert(
    plan: Plan, place: Workplace, pending: Sequence[int], finished: Sequence[ShardReport], options: ConvertOptions
) -> None:
    """Convert the pending units and watch over the share of bad rows."""
    known = [unit.source.count for unit in plan.units]
    bar = tqdm(
        total=None if None in known else sum(number or 0 for number in known),
        initial=sum(report.rows for report in finished), desc=plan.name, unit="row", disable=not pending,
    )  # fmt: skip
    running = total(finished, place.out, 0)
    with bar:
        for reports in _results(plan, place, pending, min(options.processes, len(pending))):
            for report in reports:
                running.add(report)
                bar.update(report.rows)
            bar.set_postfix({"written": running.written, **running.skipped})
            if running.rows >= _JUDGED_FROM:
                _judge(running, options.max_skipped)


def _results(plan: Plan, place: Workplace, pending: Sequence[int], processes: int) -> Iterator[list[ShardReport]]:
    """The reports of each pending unit, in the order in which they get ready."""
    if processes <= 1:
        for number in pending:
            yield convert_unit(place, number, plan.units[number])
        return
    # Forking a process that has run threads may hang; a fork server has none, and imports only once.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(processes, context, _end_with_parent) as pool:
        futures = [pool.submit(convert_unit, place, number, plan.units[number]) for number in pending]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Leave no worker behind that would go on writing when the main process was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def convert_unit(place: Workplace, number: int, unit: Unit) -> list[ShardReport]:
    """Write the shards of a unit that are not there yet; gives the reports of all."""
    reports = []
    rows = enumerate(unit.source.rows())
    size = place.shard_size if unit.source.streamed else sys.maxsize
    for part in count():
        shard = place.shard(number, unit.source, part)
        report = place.finished(shard)
        block = islice(rows, size)
        if report is None:
            report = _write(place, shard, block, unit, f"{place.name}-{number:06d}")
            report.last = report.rows < size
            report.save(place.state / f"{shard}.json")
            place.finished(shard)
        else:
            for _ in block:  # a stream has to be read up to where the next shard begins
                pass
        reports.append(report)
        if report.last:
            return reports
    raise AssertionError("count() does not end")


def _write(place: Workplace, shard: str, rows: Iterator[tuple[int, Row]], unit: Unit, key: str) -> ShardReport:
    """Write one shard into the hidden folder. key: beginning of its samples' keys."""
    report = ShardReport()
    place.unmoved(shard).unlink(missing_ok=True)
    folder = str(place.state).replace("{", "{{").replace("}", "}}")
    with ShardWriter(f"{folder}/{shard}.{{}}.tar", sys.maxsize, sys.maxsize) as writer:
        for index, row in rows:
            report.rows += 1
            try:
                if isinstance(row.data, BadRowError):
                    raise row.data
                draft = unit.converter.draft(row.data)
                writer.write(f"{key}-{index:08d}", draft.document, draft.images)
                report.written += 1
            except BadRowError as error:
                report.skip(row.place, error)
            except DocumentError as error:
                report.skip(row.place, BadRowError(error.cause, str(error)))
    report.bytes = place.unmoved(shard).stat().st_size if report.written else 0
    return report


def _judge(summary: ConversionSummary, max_skipped: float) -> None:
    """Raise TooManyBadRowsError above the limit, and when there is nothing at all."""
    rows = summary.rows - sum(number for cause, number in summary.skipped.items() if cause in EXPECTED)
    if summary.bad <= max_skipped * rows:
        return
    causes = ", ".join(f"{number} {cause}" for cause, number in Counter(summary.skipped).most_common())
    examples = [example for examples in summary.examples.values() for example in examples[:1]]
    raise TooManyBadRowsError(
        f"{summary.bad} of {rows} rows are unusable ({causes}), over the limit of {max_skipped:.0%}; for example "
        f"{'; '.join(examples)}. Correct the data set and convert it into a new folder, or raise max_skipped"
    )
