"""`benchmarks/gpu.py` on a CPU: its plan, its time, and what it says was reached."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hyperbagel.cli import main


@pytest.fixture
def gpu() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_line_of_the_plan_is_a_run_of_the_bench(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, and of one measurement each; a line that fails leaves the others."""
    plan = {"plain": "--quick --only pass", "compiled": "--quick --only nothing", "fp8": "--quick --only pass"}
    limits: list[float] = []

    def run(command: list[str], timeout: float) -> SimpleNamespace:
        limits.append(timeout)
        try:
            main([*command[command.index("bench") :], "--dtype", "float32"])
        except SystemExit:
            return SimpleNamespace(returncode=1)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(gpu, "PLAN", plan)
    monkeypatch.setattr(subprocess, "run", run)
    gpu.main(["--preset", "nano", "--device", "cpu", "--out", str(tmp_path), "--minutes", "5"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fp8.json", "plain.json", "summary.md"]
    assert 300 >= limits[0] > limits[1] > limits[2]
    text = capsys.readouterr().out
    assert "## plain: hyperbagel bench --preset nano --quick --only pass" in text
    assert "| fp8 pass / bfloat16 pass | <= 0.65 | not measured | |" in text


def test_what_the_time_does_not_suffice_for_is_left_out(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(command: list[str], timeout: float) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", slow)
    gpu.main(["--preset", "nano", "--out", str(tmp_path), "--only", "plain"])
    gpu.main(["--preset", "nano", "--out", str(tmp_path), "--only", "plain", "--minutes", "0"])
    text = capsys.readouterr().out
    assert "plain: stopped, as its time was over" in text and "## plain: left out, as the time is over" in text


def test_every_target_is_found_and_judged(gpu: ModuleType) -> None:
    pictures = [{"evaluations": n, "batch": 1, "seconds": s, "peak_bytes": 11 * 2**30} for n, s in
                ((100, 9.0), (6, 0.7), (1, 0.1))]  # fmt: skip
    answers = [
        {"what": "plain", "batch": 1, "limit_tokens_per_second": 200.0, "tokens_per_second": 90.0},
        {"what": "plain, replayed", "batch": 1, "tokens_per_second": 170.0, "ms_per_round": 6.0},
        {"what": "chain of 4, replayed", "batch": 1, "ms_per_round": 8.0},
    ]
    updates = [{"peak_bytes": 50 * 2**30, "planned_bytes": 60 * 2**30}, {"peak_bytes": 2**30, "planned_bytes": 2**30}]
    results: dict[str, dict[str, Any]] = {
        "plain": {"answers": answers, "updates": updates},
        "compiled": {"pass": [{"ms": 90.0, "share_of_matmul": 0.86}], "pictures": pictures},
        "fp8": {"pass": [{"ms": 54.0}]},
        "nf4": {"pictures": pictures},
        "int8": {"pictures": [pictures[1] | {"error": "OutOfMemoryError"}]},
    }
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in gpu.summary(results).splitlines()[2:]]
    assert [row[3] for row in rows] == ["yes", "yes", "no", "yes", "yes", "yes", "yes", "yes", "yes", "no", "yes", ""]
    reached = [row[2] for row in rows]
    assert reached[4] == "0.6" and reached[5] == "0.85" and reached[6] == "1.33" and reached[8:10] == ["50", "0.2"]
    assert rows[11][2] == "not measured"


@pytest.mark.slow
def test_the_whole_plan_at_nano_size(gpu: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    gpu.main(["--preset", "nano", "--device", "cpu", "--out", str(tmp_path)])
    assert "not measured" not in (tmp_path / "summary.md").read_text()
    for name in gpu.PLAN:
        content = json.loads((tmp_path / f"{name}.json").read_text())
        parts = [part for part in content if part not in ("hyperbagel", "device")]
        assert parts and not [record for part in parts for record in content[part] if "error" in record]
