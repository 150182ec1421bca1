"""The callback `Report`, which writes what the evaluations of a run found to its folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from hyperbagel.bagel.images import of_uint8
from hyperbagel.callbacks.evaluation import Evaluation
from hyperbagel.callbacks.loggers import flush, log_table
from hyperbagel.callbacks.side_by_side import side_by_side
from hyperbagel.evaluation.page import PAGE, write_page
from hyperbagel.evaluation.reports import LOGS, OWN, REPORT, markdown, tables, write_report
from hyperbagel.evaluation.run_files import RunFolder
from hyperbagel.files import write_picture
from hyperbagel.training.stage import student_updates

_LOSSES = "val/loss/"


class Report(Callback):
    """Collects what a run found, in its evaluating callbacks and as losses of validation or test documents:
    `report.json` with all details, `report.md` with tables, which `test` and `validate` also show, `<benchmark>.png`
    with the same pictures under all measured settings (`pictures` has them one by one), and `report.html`, a page with
    all of it and the curves. The tables go to loggers too, see `callbacks.loggers`.

    Args:
        folder: to write to; None for the run's own.

    Examples:
        >>> Report(folder="runs/mine").folder
        'runs/mine'
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
        logs = run_folder(trainer)
        folder = Path(self.folder) if self.folder is not None else logs
        measured = report["results"] if show else [*_benchmarks(trainer)]  # losses alone are no result of a training
        if not measured or not trainer.is_global_zero:
            return
        if folder.resolve() != logs.resolve():
            report[LOGS] = os.path.relpath(logs, folder)
        for name, callback in _benchmarks(trainer):
            report["results"][name]["pictures"] = _write_samples(folder, name, callback.findings.samples)
            if callback.findings.pictures:
                write_picture(folder / f"{name}.png", side_by_side(callback.findings.pictures))
        write_report(report, folder)
        found = tables({folder.name: report})
        for logger in trainer.loggers:
            for table in found:
                log_table(logger, f"report/{table.title}", table, report["student_step"])
            flush(logger)
        write_page({folder.name: report}, {folder.name: RunFolder.of(folder)}, folder / PAGE)
        if show:
            tqdm.write(f"{markdown(found)}\n{folder / REPORT}\n{folder / PAGE}")


def _write_samples(folder: Path, benchmark: str, samples: Mapping[str, Sequence[Tensor]]) -> dict[str, list[str]]:
    """Write single pictures; returns their files by what drew them, as the folder calls them."""
    files: dict[str, list[str]] = {}
    for number, (name, pictures) in enumerate(samples.items()):
        files[name] = [f"pictures/{benchmark}-{number}-{slot}.png" for slot in range(len(pictures))]
        for file, picture in zip(files[name], pictures, strict=True):
            write_picture(folder / file, of_uint8(picture))
    return files


def run_folder(trainer: L.Trainer) -> Path:
    """Where a run keeps its files: the logger's folder, or the trainer's."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def collect(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
    """The report of a trainer: results by benchmark, each with rows of metrics and details; and the last losses on
    validation or test documents, as `loss`."""
    results: dict[str, dict[str, Any]] = {}
    for name, callback in _benchmarks(trainer):
        found = callback.findings
        results[name] = {"rows": found.rows, "details": found.details, "captions": found.captions}
    losses = {
        name.removeprefix(_LOSSES): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(_LOSSES)
    }
    if losses:
        results["loss"] = {"rows": {OWN: losses}, "details": {}}
    return {"stage": type(pl_module).__name__, "student_step": student_updates(pl_module), "results": results}


def _benchmarks(trainer: L.Trainer) -> Iterator[tuple[str, Evaluation]]:
    """The callbacks that measured something, by name; several of a kind are counted."""
    seen: Counter[str] = Counter()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Evaluation) and callback.findings.rows:
            name = type(callback).__name__.lower()
            seen[name] += 1
            yield f"{name}-{seen[name]}" if seen[name] > 1 else name, callback
