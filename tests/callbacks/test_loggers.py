"""What loggers get beside scalars, all on one axis; a stub takes it as Lightning's `WandbLogger` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyperbagel.callbacks import Report
from hyperbagel.callbacks.evaluation import Evaluation, Findings, Run
from hyperbagel.callbacks.loggers import log_pictures, log_table
from hyperbagel.cli import main
from hyperbagel.evaluation.reports import read_report
from hyperbagel.evaluation.run_files import RunFolder
from hyperbagel.evaluation.tables import Table
from hyperbagel.modules.pretraining import Pretraining
from hyperbagel.training.networks import Training
from tests.runs import scenes, trainer


class Stub(Logger):
    """Keeps what it is given."""

    name, version = "stub", "0"

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.tables: list[dict[str, Any]] = []
        self.steps: dict[str, list[int]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name in metrics:
            self.steps.setdefault(name, []).append(step)

    def log_hyperparams(self, params: Any) -> None:
        pass

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.images.append({"key": key, "images": images, "step": step, **kwargs})

    def log_table(
        self, key: str, columns: Any = None, data: Any = None, dataframe: Any = None, step: Any = None
    ) -> None:
        self.tables.append({"key": key, "columns": columns, "data": data, "step": step})


class Probe(Evaluation):
    """Finds the same each time, a red picture among it."""

    def evaluate(self, run: Run) -> Findings:
        red = torch.zeros(3, 8, 8, dtype=torch.uint8)
        red[0] = 255
        rows = {"teacher": {"probe/score": 0.5}, "1 step": {"probe/score": 0.25}}
        return Findings(rows, {}, {"probe/teacher": red}, ["a <red> square"], {"teacher": [red], "1 step": [red]})


def test_a_training_logs_losses_pictures_and_tables_against_updates(
    nano_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two batches each. The report lies elsewhere, and tells where the curves are."""
    stub, board = Stub(), TensorBoardLogger(tmp_path, name="", version="run")
    runner = trainer(
        tmp_path,
        max_steps=4,
        logger=[board, stub],
        callbacks=[Probe(every_n_updates=2), Report(str(tmp_path / "reports" / "mine"))],
        limit_val_batches=2,
        num_sanity_val_steps=0,
        val_check_interval=4,
    )
    runner.fit(Pretraining(model=nano_folder, student=Training(accumulate=2)), scenes({"generation": 1.0}))
    assert stub.steps["val/loss/image"] == stub.steps["probe/score"] == stub.steps["1 step/probe/score"] == [2, 4]
    assert {step for steps in stub.steps.values() for step in steps} <= set(range(5))
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Scalars("val/loss/image")] == [2, 4]
    assert [event.step for event in events.Images("probe/teacher")] == [2, 4]
    assert {"probe/captions/text_summary", "report/probe/text_summary"} <= set(events.Tags()["tensors"])

    assert [(image["key"], image["step"]) for image in stub.images] == [("probe/teacher", 2), ("probe/teacher", 4)]
    assert stub.images[0]["caption"] == ["1. a <red> square"]
    assert stub.images[0]["images"][0].getpixel((0, 0)) == (255, 0, 0)
    table = {"columns": ["row", "score"], "data": [["teacher", 0.5], ["1 step", 0.25]], "step": 4}
    assert stub.tables[0] == {"key": "report/probe", **table}
    assert [(other["key"], other["step"]) for other in stub.tables[1:]] == [("report/loss", 4)]

    report = tmp_path / "reports" / "mine"
    assert read_report(report)["logs"] == "../../run"
    assert "val/loss/image" in RunFolder.of(report).curves()
    page = (report / "report.html").read_text()
    assert ">val/loss/image</text>" in page and page.count("<img") == 2 and "a &lt;red&gt; square" in page
    main(["report", str(report), "--html", str(tmp_path / "again.html")])
    assert ">val/loss/image</text>" in (tmp_path / "again.html").read_text()


def test_columns_of_tables_have_one_type_each() -> None:
    """Loggers refuse a column of numbers and texts; those without a method for tables are passed over."""
    table = Table("gedit", {"a": {"gedit/o": "7.5", "n": "+0.1 [0, 1]"}, "b": {"n": "-"}})
    stub = Stub()
    log_table(stub, "report/gedit", table, 3)
    assert stub.tables[0]["data"] == [["a", 7.5, "+0.1 [0, 1]"], ["b", None, "-"]]
    assert stub.tables[0]["columns"] == ["row", "o", "n"]
    other = CSVLogger("unused")
    log_table(other, "x", table, 3)
    log_pictures(other, {"x": torch.zeros(3, 2, 2, dtype=torch.uint8)}, [], 3)
    assert not Path("unused").exists()


def test_curves_of_runs_without_tensorboard_are_read_from_their_table(nano_folder: str, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="run")
    runner = trainer(tmp_path, max_steps=3, logger=logger, callbacks=[Probe(every_n_updates=1)])
    runner.fit(Pretraining(model=nano_folder), scenes({"generation": 1.0}))
    curves = RunFolder(tmp_path / "run").curves()
    assert curves["probe/score"] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert [step for step, _ in curves["loss/image"]] == [1, 2, 3]
