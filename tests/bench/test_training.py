"""The benchmark of trainings: batches that fill a GPU, and everything that it does there but on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hyperbagel.cli.bases import content, with_bases

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "training.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = spec_from_file_location("benchmark_of_trainings", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def test_batches_on_a_gpu_have_hundreds_of_pictures(benchmark: ModuleType) -> None:
    """Of each source, by the recipes as they are."""
    for stage, measured in benchmark.STAGES.items():
        batching: dict[str, Any] = {}
        sources: list[dict[str, Any]] = []
        group = 1
        for option in with_bases(["--config", str(ROOT / "configs" / "scenes" / f"{stage}.yaml")]):
            recipe = content(Path(option.partition("=")[2]))
            data = recipe.get("data", {}).get("init_args", {})
            batching |= data.get("batching", {})
            sources = data.get("train", sources)
            if stage == "reward_tuning":
                group = recipe.get("model", {}).get("init_args", {}).get("method", {}).get("group", 8)
        sizes = {group * measured.times * source.get("batch_size", batching["batch_size"]) for source in sources}
        assert min(sizes) >= 256 and max(sizes) <= 2048, (stage, sizes)


def test_rows_tell_which_targets_are_missed(benchmark: ModuleType) -> None:
    row = {"precision": "bf16-mixed", "seconds_per_update": 0.1, "waiting": 0.2, "of_peak": 0.04, "memory_gib": 30.0}
    fast = row | {"stage": "tscd", "samples_per_second": 2100.0, "target": 2000, "waiting": 0.01}
    slow = row | {"stage": "joint", "samples_per_second": 1500.0, "target": 3000}
    assert "2,000 " in benchmark.line(fast, fast) and "3,000!" in benchmark.line(slow, slow)
    assert "4.00%" in benchmark.line(slow, slow)
    told = benchmark.summary([fast, slow])
    assert told == "below the target (!): joint\nwaiting for data 10% and more: joint"


def test_a_gpu_begins_with_the_stages_that_have_targets(benchmark: ModuleType) -> None:
    options = benchmark.parsed(["--gpu"])
    assert options.stages[:2] == ["generation", "joint"] and set(options.stages) == set(benchmark.STAGES)
    overlay = benchmark.overlay("joint", options, Path("out.json"))
    assert overlay["data"]["init_args"] == {"batching": {"times": 16}, "reader": {"num_workers": 16, "prefetch": 2}}


@pytest.mark.slow
def test_a_dry_run_does_everything_but_the_device(tmp_path: Path) -> None:
    stages = ("generation", "understanding")
    command = [sys.executable, str(SCRIPT), "--gpu", "--dry", "--threads", "1", "--stages", *stages]
    ran = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "training.json").read_text())
    assert [row["stage"] for row in rows] == list(stages)
    for row in rows:
        assert 0 < row["operations_per_second"] < row["peak_operations_per_second"]
        assert row["samples_per_second"] > 0 and 0 <= row["waiting"] < 1
    assert "5,000!" in ran.stdout and "waiting for data" in ran.stdout
