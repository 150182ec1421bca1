"""Reports of runs: `report.json` with all details, and Markdown tables that compare any number of them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hyperbagel.evaluation import geneval
from hyperbagel.evaluation.gedit import report as gedit
from hyperbagel.evaluation.tables import Table
from hyperbagel.files import write_text

REPORT = "report.json"
"""Name of the file in a run's folder."""

LOGS = "logs"
"""Key of the folder with the curves and settings of a run, seen from that of the report, where it is another one."""

OWN = "model"
"""Name of the row of the stage's own sampler."""

SOURCE = "source"
"""Among the pictures of a benchmark, the name of those that were edited."""


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write both files; a crash leaves the old ones. Raises WriteError."""
    shown = markdown(tables({folder.name: report}))
    texts = {REPORT: json.dumps(report, indent=1, ensure_ascii=False), "report.md": shown}
    for name, text in texts.items():
        write_text(folder / name, text + "\n")


def read_report(run: str | Path) -> dict[str, Any]:
    """The report of a run's folder, or a report file. Raises FileNotFoundError, or ValueError if it is none."""
    path = Path(run) / REPORT if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no report; `hyperbagel test` with the Report callback writes one")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        {row: dict(metrics) for found in report["results"].values() for row, metrics in found["rows"].items()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a report of a run ({error!r})") from error
    loaded: dict[str, Any] = report
    return loaded


def tables(reports: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Tables of reports by name, one per benchmark; one row for each measured setting of each run. The last ones
    compare GenEval and GEdit on the same prompts, edits and noise with the first row's.
    """
    found = [Table(name, _figures(results["rows"])) for name, results in combined(reports)["results"].items()]
    return found + [table for name in _COMPARED if (table := _paired(name, reports))]


_BRIEFLY = {
    "GenEval": ("geneval", "geneval/overall"),
    "GEdit EN": ("gedit", "gedit/en/o"),
    "GEdit CN": ("gedit", "gedit/cn/o"),
    "NFE": ("geneval", "nfe"),
    "s/picture": ("geneval", "time/seconds_per_image"),
    "tokens/s": ("speculation", "speculation/tokens_per_second"),
    "of plain": ("speculation", "speculation/speedup"),
}
"""Columns of the brief table: the benchmark and the metric that each one shows."""


def brief(reports: Mapping[str, Mapping[str, Any]]) -> Table:
    """Reports by name in one table of the figures that matter most, narrow enough for a terminal.

    Rows are called after their settings alone, unless several runs have such a row.
    """
    runs_of = Counter(
        row
        for report in reports.values()
        for row in dict.fromkeys(row for found in report["results"].values() for row in found["rows"])
    )
    rows: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for run, report in reports.items():
        for column, (benchmark, metric) in _BRIEFLY.items():
            for row, metrics in report["results"].get(benchmark, {"rows": {}})["rows"].items():
                if metric in metrics:
                    name = row if runs_of[row] == 1 and row != OWN else named(run, row, reports)
                    rows[name][column] = metrics[metric]
    return Table("results", _figures(rows))


def markdown(tables: Iterable[Table]) -> str:
    """Tables below each other."""
    return "\n\n".join(table.markdown() for table in tables)


def combined(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One report of several by name: all rows, named after their run, without details."""
    results: dict[str, Any] = {}
    for run, report in reports.items():
        for benchmark, found in report["results"].items():
            rows = results.setdefault(benchmark, {"rows": {}, "details": {}})["rows"]
            for row, metrics in found["rows"].items():
                rows[named(run, row, reports)] = metrics
    return {"runs": list(reports), "results": results}


def named(run: str, row: str, reports: Mapping[str, Any]) -> str:
    """What a row is called among those of all reports."""
    return row if len(reports) == 1 else run if row == OWN else f"{run}: {row}"


def _geneval_differences(report: geneval.GenEvalReport, reference: geneval.GenEvalReport) -> dict[str, str]:
    found = geneval.compare(report, reference)
    return {"pairs": str(found.images)} | {k: f"{v:+}" for k, v in (found.tasks | {"overall": found.overall}).items()}


def _gedit_differences(report: gedit.GEditReport, reference: gedit.GEditReport) -> dict[str, str]:
    found = gedit.compare(report, reference)
    return {"pairs": str(found.edits)} | {f"{language}/o": f"{v:+}" for language, v in found.languages.items()}


_COMPARED: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, str]]]] = {
    "geneval": (geneval.GenEvalReport.from_dict, _geneval_differences),
    "gedit": (gedit.GEditReport.from_dict, _gedit_differences),
}


def _paired(benchmark: str, reports: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """The table of paired differences to the first row; None where no other row judged the same pictures."""
    read, differences = _COMPARED[benchmark]
    judged = {}
    for run, report in reports.items():
        for row, details in report["results"].get(benchmark, {}).get("details", {}).items():
            with suppress(ValueError):  # without single verdicts
                judged[named(run, row, reports)] = read(details)
    if not judged:
        return None
    (reference, first), *others = judged.items()
    rows = {}
    for name, other in others:
        with suppress(ValueError):  # of other prompts or noise
            rows[name] = differences(other, first)
    title = f"{benchmark}, difference to {reference} on the same prompts and noise, with 95 % intervals"
    return Table(title, rows) if rows else None


def _figures(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, str]]:
    """Rows of metrics as texts: what is a count in all of them without decimals."""
    columns: defaultdict[str, list[float]] = defaultdict(list)
    for metrics in rows.values():
        for metric, value in metrics.items():
            columns[metric].append(float(value))
    counts = {m for m, values in columns.items() if all(v.is_integer() for v in values) and max(map(abs, values)) >= 2}
    return {
        row: {metric: f"{value:.{0 if metric in counts else 3}f}" for metric, value in metrics.items()}
        for row, metrics in rows.items()
    }
