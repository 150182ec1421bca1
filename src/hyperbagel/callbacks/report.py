"""The results of a run as `report.json` and `report.md`, and as a table of any runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from hyperbagel.callbacks.evaluation import OWN, Evaluation
from hyperbagel.callbacks.pictures import side_by_side
from hyperbagel.evaluation import geneval
from hyperbagel.evaluation.gedit import report as gedit
from hyperbagel.files import write_picture, write_text

REPORT = "report.json"


class Report(Callback):
    """Collects what the evaluating callbacks of a run found: `report.json` with all details, `report.md` with tables,
    which `test` and `validate` also show, and `<benchmark>.png` with the same pictures under all measured settings.

    Args:
        folder: to write to; None for the run's own.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write and show."""
        self._write(trainer, pl_module, show=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write and show after `validate`."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, show=True)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last results of a training, if there were any."""
        self._write(trainer, pl_module, show=False)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, show: bool) -> None:
        report = collect(trainer, pl_module)
        folder = Path(self.folder) if self.folder is not None else run_folder(trainer)
        if not report["results"] or not trainer.is_global_zero:
            return
        write_report(report, folder)
        for name, callback in _benchmarks(trainer):
            if callback.findings.pictures:
                write_picture(folder / f"{name}.png", side_by_side(callback.findings.pictures))
        if show:
            tqdm.write(f"{tables({folder.name: report})}\n{folder / REPORT}")


def run_folder(trainer: L.Trainer) -> Path:
    """Where a run keeps its files: the logger's folder, or the trainer's."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def collect(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
    """The report of a trainer: results by benchmark, each with rows of metrics and details."""
    results = {
        name: {"rows": callback.findings.rows, "details": callback.findings.details}
        for name, callback in _benchmarks(trainer)
    }
    step = int(getattr(pl_module, "student_step", trainer.global_step))
    return {"stage": type(pl_module).__name__, "student_step": step, "results": results}


def _benchmarks(trainer: L.Trainer) -> Iterator[tuple[str, Evaluation]]:
    """The callbacks that measured something, by name; several of a kind are counted."""
    seen: Counter[str] = Counter()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Evaluation) and callback.findings.rows:
            name = type(callback).__name__.lower()
            seen[name] += 1
            yield f"{name}-{seen[name]}" if seen[name] > 1 else name, callback


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write both files; a crash leaves the old ones. Raises WriteError."""
    texts = {REPORT: json.dumps(report, indent=1, ensure_ascii=False), "report.md": tables({folder.name: report})}
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


def tables(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown tables, one a benchmark, of reports by name; one row for each measured setting of each run. The last
    ones compare GenEval and GEdit on the same prompts, edits and noise with the first row's.
    """
    parts = [
        _table(name, {row: {m: _figure(v) for m, v in metrics.items()} for row, metrics in found["rows"].items()})
        for name, found in combined(reports)["results"].items()
    ]
    return "\n\n".join(parts + [table for name in _COMPARED if (table := _paired(name, reports))])


def combined(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One report of several by name: all rows, named after their run, without details."""
    results: dict[str, Any] = {}
    for run, report in reports.items():
        for benchmark, found in report["results"].items():
            rows = results.setdefault(benchmark, {"rows": {}, "details": {}})["rows"]
            for row, metrics in found["rows"].items():
                rows[_named(run, row, reports)] = metrics
    return {"runs": list(reports), "results": results}


def _named(run: str, row: str, reports: Mapping[str, Any]) -> str:
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


def _paired(benchmark: str, reports: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The table of paired differences to the first row; None where no other row judged the same pictures."""
    read, differences = _COMPARED[benchmark]
    judged = {}
    for run, report in reports.items():
        for row, details in report["results"].get(benchmark, {}).get("details", {}).items():
            with suppress(ValueError):  # without single verdicts
                judged[_named(run, row, reports)] = read(details)
    if not judged:
        return None
    (reference, first), *others = judged.items()
    rows = {}
    for name, other in others:
        with suppress(ValueError):  # of other prompts or noise
            rows[name] = differences(other, first)
    title = f"{benchmark}, difference to {reference} on the same prompts and noise, with 95 % intervals"
    return _table(title, rows) if rows else None


def _table(title: str, rows: Mapping[str, Mapping[str, str]]) -> str:
    columns = list(dict.fromkeys(metric for metrics in rows.values() for metric in metrics))
    lines = [["", *(column.removeprefix(f"{title}/") for column in columns)]]
    lines += [[name, *(metrics.get(column, "-") for column in columns)] for name, metrics in rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    body = [
        " | ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in lines
    ]
    return "\n".join([f"### {title}", "", *(f"| {line} |" for line in body)])


def _figure(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() and abs(value) >= 2 else f"{value:.3f}"
