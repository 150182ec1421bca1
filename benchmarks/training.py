"""Speed of the training stages on the device at hand: samples per second, waiting for data, memory.

    python benchmarks/training.py [--stages tscd adp ...] [--warm-up 20] [--updates 20] [--precisions 32-true ...]
        [--threads 2] [--set MODEL_OR_DATA_OPTION=VALUE ...] [--out training.json]

Each row is a run of a recipe of the scenes size by `hyperbagel fit`, without evaluations, in a process of its own. The
first updates warm up: layers are compiled there, for each source once, so all of them should have had a turn. The rows
of one stage are to be compared, as they ran one after the other on the same machine.
`--set data.init_args.batching.batch_size=64` measures a recipe with another setting.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer

STAGES = (
    "autoencoder",
    "understanding",
    "generation",
    "joint",
    "draft_head",
    "cfg_distillation",
    "tscd",
    "dmdo",
    "reward_tuning",
    "adp",
    "refl",
)
COLUMNS = {"stage": 17, "precision": 12, "s/update": 10, "samples/s": 11, "waiting": 9, "memory, GiB": 13, "": 9}


class Meter(Callback):
    """Times updates of the student, and how long the next batch was waited for; writes both at the end.

    out: file to write. warm_up: updates that are not counted.
    """

    def __init__(self, out: str, warm_up: int) -> None:
        self.out, self.warm_up = Path(out), warm_up
        self.marks: list[tuple[float, float, int, int]] = []  # start, end, samples and updates so far
        self.samples = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note when the batch was there."""
        self.started = self._now()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note when the update was done."""
        self.samples += len(batch)
        self.marks.append((self.started, self._now(), self.samples, int(pl_module.student_step)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was measured."""
        counted = [mark for mark in self.marks if mark[3] > self.warm_up]
        first = self.marks[len(self.marks) - len(counted) - 1]
        seconds, updates = counted[-1][1] - first[1], counted[-1][3] - first[3]
        ends = [first[1], *(end for _, end, _, _ in counted)]
        waited = sum(start - before for before, (start, *_) in zip(ends, counted, strict=False))
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else own
        self.out.write_text(
            json.dumps(
                {
                    "seconds_per_update": seconds / updates,
                    "samples_per_second": (counted[-1][2] - first[2]) / seconds,
                    "waiting": waited / seconds,
                    "memory_gib": peak / 2**30,
                }
            )
        )

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


TEXTS = {
    "class_path": "hyperbagel.datamodules.scenes.SceneSource",
    "init_args": {"weights": {"caption": 4, "question": 1, "dialogue": 1}},
}
"""What the draft head learns from here, as the model's own answers are not there."""


def overlay(stage: str, warm_up: int, updates: int, out: Path) -> dict[str, Any]:
    """What is laid over a recipe: few updates, nothing beside them but the meter."""
    beside = ("image_grid", "geneval", "gedit", "understanding", "export", "report", "provenance", "checkpoint")
    data = (
        {"data": {"init_args": {"train": [{"name": "texts", "shards": None, "samples": TEXTS}]}}}
        if stage == "draft_head"
        else {}
    )
    return data | {
        "model": {"init_args": {"settings": {"max_updates": warm_up + updates}}},
        "trainer": {
            "logger": False,
            "default_root_dir": str(out.parent),
            "enable_checkpointing": False,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "max_time": None,
            "callbacks": [
                {"class_path": "__main__.Meter", "init_args": {"out": str(out), "warm_up": warm_up}},
            ],
        },
        "callbacks": dict.fromkeys(beside),
    }


def measure(stage: str, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own. Raises CalledProcessError, after showing what the run said."""
    with tempfile.TemporaryDirectory() as folder:
        result, config = Path(folder) / "result.json", Path(folder) / "overlay.yaml"
        config.write_text(yaml.safe_dump(overlay(stage, arguments.warm_up, arguments.updates, result)))
        options = ["--trainer.precision", precision, *(f"--{setting}" for setting in arguments.set)]
        command = [sys.executable, __file__, "--run", "fit", "--config", f"scenes/{stage}", "--config", str(config)]
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
        ran = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
        if ran.returncode or not result.is_file():
            print(ran.stdout[-2000:], ran.stderr[-4000:], sep="\n", file=sys.stderr)
            raise subprocess.CalledProcessError(ran.returncode, command)
        found: dict[str, Any] = json.loads(result.read_text())
    return {"stage": stage, "precision": precision, **found}


def main() -> None:
    """Print a row a run, and write them as JSON."""
    if sys.argv[1:2] == ["--run"]:
        from hyperbagel.cli import main as hyperbagel

        hyperbagel(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=STAGES, metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--warm-up", type=int, default=20, help="updates before those (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=20, help="counted updates (default: %(default)s)")
    parser.add_argument("--precisions", nargs="+", default=["32-true", "bf16-mixed"], help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of one operator (default: %(default)s)")
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE", help="further settings of the recipes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    print("".join(f"{name:>{width}}" for name, width in COLUMNS.items()))
    rows = []
    for stage in arguments.stages:
        for precision in arguments.precisions:
            row = measure(stage, precision, arguments)
            rows.append(row)
            base = next(r for r in rows if r["stage"] == stage)
            ratio = row["samples_per_second"] / base["samples_per_second"]
            print(
                f"{stage:>17}{precision:>12}{row['seconds_per_update']:10.3f}{row['samples_per_second']:11.1f}"
                f"{row['waiting']:9.1%}{row['memory_gib']:13.2f}{ratio:8.2f}x",
                flush=True,
            )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
