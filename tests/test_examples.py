"""The plug-ins of `examples/` run through the command line, from YAML alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from hyperbagel.cli import main
from tests.runs import nano_folder

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.yaml"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command at the head of an example's YAML, in a folder of its own; returns what it logged."""
    nano_folder(tmp_path / "fresh" / "nano")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    logged: dict[str, Any] = {}
    inner = Trainer._teardown

    def keep(self: Trainer) -> None:
        logged.update(self.callback_metrics)
        inner(self)

    monkeypatch.setattr(Trainer, "_teardown", keep)

    def command(example: str) -> dict[str, Any]:
        second = (ROOT / "examples" / f"{example}.yaml").read_text().splitlines()[1]
        main(re.fullmatch(r"#   PYTHONPATH=examples hyperbagel (.*)", second)[1].split())  # type: ignore[index]
        return {name: float(value) for name, value in logged.items()}

    return command


def report(folder: Path, benchmark: str) -> dict[str, Any]:
    (path,) = folder.rglob("report.json")
    found: dict[str, Any] = json.loads(path.read_text())["results"][benchmark]
    return found


def test_every_example_is_short_and_tested() -> None:
    assert EXAMPLES == ["blobs", "drift", "pixel_judge", "saturation", "stripes", "total_variation"]
    for name in EXAMPLES:
        assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) <= 45


def test_a_loss(run: Any) -> None:
    logged = run("total_variation")
    assert logged["loss/total_variation"] > 0
    assert "loss/cfg_distillation" in logged


def test_a_reward(run: Any) -> None:
    logged = run("saturation")
    assert logged["loss/refl"] == pytest.approx(max(0.0, 1.5 - logged["reward/refl"]), abs=0.5)


def test_a_detector(run: Any, tmp_path: Path) -> None:
    logged = run("blobs")
    assert {"geneval/single_object", "geneval/two_object", "geneval/colors", "geneval/overall"} <= logged.keys()
    from blobs import Blobs

    image = np.full((3, 32, 32), 255, np.uint8)
    image[:2, 4:12, 4:12] = 0
    picture = torch.from_numpy(image)
    (found,) = Blobs().detect([picture])
    assert found["square"].boxes.tolist() == [[4, 4, 12, 12]] and not len(found["circle"])
    assert Blobs().classify(picture, "square", found["square"]) == ["blue"]


def test_a_judge(run: Any, tmp_path: Path) -> None:
    logged = run("pixel_judge")
    assert 0 <= logged["gedit/o"] <= 10
    assert "pixel-judge" in json.dumps(report(tmp_path, "gedit"))


def test_a_data_source(run: Any) -> None:
    assert run("stripes")["loss/image"] > 0
    from stripes import Stripes

    picture = Stripes(side=8)[0]["0.png"]
    assert picture[0, :, 1].tolist() == [40, 40, 255, 255, 40, 40, 255, 255]


def test_a_callback(run: Any) -> None:
    assert 0 < run("drift")["drift"] < 1
