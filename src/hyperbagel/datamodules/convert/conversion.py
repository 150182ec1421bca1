"""Running a conversion: rows in, shards out, in several processes, to be stopped and continued at any time.

Every source of rows is a unit of work whose shards depend on nothing else, so the number of processes and interruptions
leave no trace in the result. A shard is written in the hidden folder `.conversion`, then its report, then it is moved
to its place: what is there is finished, and is not written again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from itertools import count, islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from hyperbagel.datamodules.convert.archives import Unpacking
from hyperbagel.datamodules.convert.conversion_folder import ConversionFolder
from hyperbagel.datamodules.convert.errors import EXPECTED, BadRowError, FormatError, TooManyBadRowsError
from hyperbagel.datamodules.convert.files import FileStates
from hyperbagel.datamodules.convert.names import clean_name
from hyperbagel.datamodules.convert.options import ConvertOptions
from hyperbagel.datamodules.convert.pictures import Composition
from hyperbagel.datamodules.convert.reports import ConversionSummary, ShardReport, total
from hyperbagel.datamodules.convert.rows import Row, RowSource
from hyperbagel.datamodules.documents import DocumentError
from hyperbagel.datamodules.writer import ShardWriter
from hyperbagel.files import write_json
from hyperbagel.messages import clip

_JUDGED_FROM = 1000


class Converter(Protocol):
    """Makes documents of rows. It is sent to other processes, so it has to be picklable."""

    def compose(self, row: Mapping[str, Any]) -> Composition:
        """The document of a row; raises BadRowError."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Work for one process: the rows of a source and what makes documents of them."""

    source: RowSource
    converter: Converter


@dataclass(frozen=True)
class ConversionJob:
    """A whole conversion.

    name: of the data set, begins the names of shards; units: in order; settings: what else the result depends on;
    src: the data set; files: the state of its files, by which a change of them is noticed; unpackings: archives to
    unpack first, if there is anything left to convert; notes: gives what else is to be told of the data set.
    """

    name: str
    units: Sequence[Unit]
    settings: Mapping[str, Any]
    src: Path
    files: FileStates
    unpackings: Sequence[Unpacking] = field(default=())
    notes: Callable[[], list[str]] = field(default=list)

    def fingerprint(self, options: ConvertOptions) -> dict[str, Any]:
        """What has to be the same for a stopped conversion to be continued."""
        digest = hashlib.sha256(self.files.digest.encode())
        for unit in self.units:
            digest.update(unit.source.name.encode(errors="surrogatepass") + b"\n")
        return {
            "data": self.name,
            **self.settings,
            "shard_size": options.shard_size,
            "limit": options.limit,
            "rows": digest.hexdigest()[:16],
            "files": self.files.count,
            "src": clean_name(str(self.src.resolve())),
        }


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


def run(job: ConversionJob, out: str | Path, options: ConvertOptions) -> ConversionSummary:
    """Do what is left of a conversion; all of it anew when files of the data set changed.

    Raises FileExistsError when `out` holds another conversion, and TooManyBadRowsError.
    """
    place = ConversionFolder(Path(out), job.name, options.shard_size)
    place.begin(job.fingerprint(options), options.resume)
    done = [place.reports(number, unit.source) for number, unit in enumerate(job.units)]
    pending = [number for number, reports in enumerate(done) if not reports or not reports[-1].last]
    kept = sum(report.written > 0 for reports in done for report in reports)
    record = place.out / "conversion.json"
    repeated = not pending and record.is_file()
    if pending:
        for unpacking in job.unpackings:
            unpacking.run()
    finished = [report for reports in done if reports and reports[-1].last for report in reports]
    _convert(job, place, pending, finished, options)
    reports = (report for number, unit in enumerate(job.units) for report in place.reports(number, unit.source))
    summary = total(reports, place.out, kept)
    summary.repeated = repeated
    summary.notes = json.loads(record.read_text()).get("notes", []) if repeated else job.notes()
    _judge(summary, options.max_skipped)
    if not summary.written:
        raise TooManyBadRowsError(
            f"not one row could be converted ({summary.rows} rows, {_causes(summary)}); {_example(summary)}"
        )
    if not repeated:
        result = {key: value for key, value in asdict(summary).items() if key not in ("out", "kept", "repeated")}
        write_json(record, {"settings": job.fingerprint(options), **result})
    place.end()
    return summary


def _convert(
    job: ConversionJob,
    place: ConversionFolder,
    pending: Sequence[int],
    finished: Sequence[ShardReport],
    options: ConvertOptions,
) -> None:
    """Convert the pending units and watch over the share of bad rows."""
    known = [unit.source.count for unit in job.units]
    bar = tqdm(
        total=None if None in known else sum(number or 0 for number in known),
        initial=sum(report.rows for report in finished), desc=job.name, unit="row", disable=not pending,
    )  # fmt: skip
    running = total(finished, place.out, 0)
    with bar:
        for reports in _results(job, place, pending, min(options.processes, len(pending))):
            for report in reports:
                running.add(report)
                bar.update(report.rows)
            bar.set_postfix({"written": running.written, **running.skipped})
            if running.rows >= _JUDGED_FROM:
                _judge(running, options.max_skipped)


def _results(
    job: ConversionJob, place: ConversionFolder, pending: Sequence[int], processes: int
) -> Iterator[list[ShardReport]]:
    """The reports of each pending unit, in the order in which they get ready."""
    if processes <= 1:
        for number in pending:
            yield convert_unit(place, number, job.units[number])
        return
    # Forking a process that has run threads may hang; a fork server has none, and imports only once.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(processes, context, _end_with_parent) as pool:
        futures = [pool.submit(convert_unit, place, number, job.units[number]) for number in pending]
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


def convert_unit(place: ConversionFolder, number: int, unit: Unit) -> list[ShardReport]:
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
            _see_all_read(unit.source, sum(report.rows for report in reports))
            return reports
    raise AssertionError("count() does not end")


def _see_all_read(source: RowSource, rows: int) -> None:
    """Raise FormatError unless a source has given as many rows as were counted when it was cut."""
    if source.count is not None and rows != source.count and not source.streamed:
        name = clip(source.name.partition("\n")[0])
        raise FormatError(
            f"{name}: {source.count} rows were counted, {rows} read; it changed meanwhile, convert it again"
        )


def _write(place: ConversionFolder, shard: str, rows: Iterator[tuple[int, Row]], unit: Unit, key: str) -> ShardReport:
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
                composition = unit.converter.compose(row.data)
                writer.write(f"{key}-{index:08d}", composition.document, composition.images)
                report.written += 1
            except BadRowError as error:
                report.skip(row.place, error)
            except DocumentError as error:
                report.skip(row.place, BadRowError(error.cause, str(error)))
    report.bytes = place.unmoved(shard).stat().st_size if report.written else 0
    return report


def _judge(summary: ConversionSummary, max_skipped: float) -> None:
    """Raise TooManyBadRowsError above the limit."""
    rows = summary.rows - sum(number for cause, number in summary.skipped.items() if cause in EXPECTED)
    if summary.bad > max_skipped * rows:
        raise TooManyBadRowsError(
            f"{summary.bad} of {rows} rows are unusable ({_causes(summary)}), over the limit of {max_skipped:.0%}; "
            f"{_example(summary)}. Correct the data set, or raise max_skipped"
        )


def _causes(summary: ConversionSummary) -> str:
    return ", ".join(f"{number} {cause}" for cause, number in Counter(summary.skipped).most_common())


def _example(summary: ConversionSummary) -> str:
    """One of the most frequent cause, rather of one that is an error."""
    causes = sorted(summary.skipped, key=lambda cause: (cause in EXPECTED, -summary.skipped[cause]))
    return f"for example {summary.examples[causes[0]][0]}" if causes else "there are no rows"
