"""Speed of the training stages on the device at hand: samples per second, waiting for data, share of the device's rate.

    python benchmarks/training.py [--stages tscd adp ...] [--warm-up 20] [--updates 20] [--precisions 32-true ...]
        [--threads 2] [--set MODEL_OR_DATA_OPTION=VALUE ...] [--out training.json]
    python benchmarks/training.py --gpu            # all stages with large batches, in a quarter of an hour
    python benchmarks/training.py --gpu --dry      # the same on a CPU: everything but the device

Each row is a run of a recipe of the scenes size by `hyperbagel fit`, without evaluations, in a process of its own. The
first updates warm up: layers are compiled there, for each source once, so all of them should have had a turn. The rows
of one stage are to be compared, as they ran one after the other on the same machine.
`--set data.init_args.batching.batch_size=64` measures a recipe with another setting.

Operations are those of matrix products and convolutions, counted once for a batch of each source; the rate that they
are a share of is that of a large matrix product, in the same type and process. Waiting is what the main process spent
until the next batch was there. Nothing waits for a GPU but at the beginning and at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

from hyperbagel.bench.device import Meter, Peaks


@dataclass(frozen=True)
class OnGPU:
    """How a stage is measured on a GPU. times: factor of its recipe's batch sizes, which makes batches of 256 to 2,048
    pictures or documents; target: samples per second that it should reach."""

    times: int
    target: int | None = None


STAGES = {
    "autoencoder": OnGPU(16),
    "understanding": OnGPU(16),
    "generation": OnGPU(32, 5000),
    "joint": OnGPU(16, 3000),
    "draft_head": OnGPU(16),
    "cfg_distillation": OnGPU(16, 2000),
    "tscd": OnGPU(16, 2000),
    "dmdo": OnGPU(16, 2000),
    "reward_tuning": OnGPU(8),
    "adp": OnGPU(16, 2000),
    "refl": OnGPU(8, 2000),
}
WAITING = 0.1
"""Share of the time that waiting for data should stay below."""
READERS = 16
COLUMNS = {
    "stage": 17, "precision": 12, "s/update": 10, "samples/s": 11, "target": 9, "waiting": 9, "of peak": 9,
    "memory, GiB": 13, "": 9,
}  # fmt: skip


class Clock(Callback):
    """Times updates of the student, and how long the next batch was waited for; writes both at the end.

    out: file to write. warm_up: updates that are not counted.
    """

    def __init__(self, out: str, warm_up: int) -> None:
        self.out, self.warm_up = Path(out), warm_up
        self.operations: dict[str, int] = {}
        self.counter: FlopCounterMode | None = None
        self.begun = self.ended = self.waited = 0.0
        self.batches: list[tuple[str, int]] = []  # source and samples of those that count

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note how long it was waited for; count the operations of the first batch of a source."""
        if self.begun:
            self.waited += time.perf_counter() - self.ended
        if batch.source not in self.operations:
            self.counter = FlopCounterMode(display=False)
            self.counter.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note when the update was begun, not done: nothing waits for it but the first and the last one."""
        if self.counter is not None:
            self.counter.__exit__(None, None, None)
            self.operations[batch.source], self.counter = self.counter.get_total_flops(), None
        if self.begun:
            self.batches.append((batch.source, len(batch)))
        elif int(pl_module.student_step) >= self.warm_up:
            meter = Meter(pl_module.device)
            if meter.on_gpu:  # counting operations took more memory, as nothing was compiled then
                torch.cuda.reset_peak_memory_stats(meter.device)
            self.begun = meter.now()
            self.updates_before = int(pl_module.student_step)
        self.ended = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was measured."""
        meter = Meter(pl_module.device)
        seconds = meter.now() - self.begun
        memory = meter.peak_bytes()
        half = "bf16" in str(trainer.precision)
        rate = Peaks.of(meter, torch.bfloat16 if half else torch.float32).matmul
        operations = sum(self.operations[source] for source, _ in self.batches) / seconds
        measured = {
            "device": meter.name(),
            "seconds_per_update": seconds / (int(pl_module.student_step) - self.updates_before),
            "samples_per_second": sum(samples for _, samples in self.batches) / seconds,
            "waiting": self.waited / seconds,
            "operations_per_second": operations,
            "peak_operations_per_second": rate,
            "of_peak": operations / rate,
            "memory_gib": memory / 2**30,
        }
        self.out.write_text(json.dumps(measured))


TEXTS = {
    "class_path": "hyperbagel.datamodules.scenes.SceneSource",
    "init_args": {"weights": {"caption": 4, "question": 1, "dialogue": 1}},
}
"""What the draft head learns from here, as the model's own answers are not there."""


def overlay(stage: str, arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """What is laid over a recipe: few updates, nothing beside them but the clock; on a GPU large batches."""
    beside = ("image_grid", "geneval", "gedit", "understanding", "export", "report", "provenance", "checkpoint")
    data: dict[str, Any] = {}
    if stage == "draft_head":
        data["train"] = [{"name": "texts", "shards": None, "samples": TEXTS}]
    if arguments.gpu and not arguments.dry:
        data |= {"batching": {"times": STAGES[stage].times}, "reader": {"num_workers": READERS, "prefetch": 2}}
    if arguments.dry:
        data["reader"] = {"num_workers": 0}
    settings: dict[str, Any] = {"max_updates": arguments.warm_up + arguments.updates}
    if arguments.dry:
        settings["compute"] = {"compile": False, "multiple": 16}
    return {
        "data": {"init_args": data},
        "model": {"init_args": {"settings": settings}},
        "trainer": {
            "logger": False,
            "default_root_dir": str(out.parent),
            "enable_checkpointing": False,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "max_time": None,
            "callbacks": [
                {"class_path": "__main__.Clock", "init_args": {"out": str(out), "warm_up": arguments.warm_up}},
            ],
        },
        "callbacks": dict.fromkeys(beside),
    }


def measure(stage: str, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own. Raises CalledProcessError, after showing what the run said."""
    with tempfile.TemporaryDirectory() as folder:
        result, config = Path(folder) / "result.json", Path(folder) / "overlay.yaml"
        config.write_text(yaml.safe_dump(overlay(stage, arguments, result)))
        options = ["--trainer.precision", precision, *(f"--{setting}" for setting in arguments.set)]
        command = [sys.executable, __file__, "--run", "fit", "--config", f"scenes/{stage}", "--config", str(config)]
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
        ran = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
        if ran.returncode or not result.is_file():
            print(ran.stdout[-2000:], ran.stderr[-4000:], sep="\n", file=sys.stderr)
            raise subprocess.CalledProcessError(ran.returncode, command)
        found: dict[str, Any] = json.loads(result.read_text())
    return {"stage": stage, "precision": precision, **found}


def line(row: dict[str, Any], base: dict[str, Any]) -> str:
    """A row of the table. base: that of the same stage that it is compared with."""
    target = row.get("target")
    reached = "" if target is None else f"{target:,}{' ' if row['samples_per_second'] >= target else '!'}"
    ratio = row["samples_per_second"] / base["samples_per_second"]
    return (
        f"{row['stage']:>17}{row['precision']:>12}{row['seconds_per_update']:10.3f}{row['samples_per_second']:11.1f}"
        f"{reached:>9}{row['waiting']:9.1%}{row['of_peak']:9.2%}{row['memory_gib']:13.2f}{ratio:8.2f}x"
    )


def summary(rows: list[dict[str, Any]]) -> str:
    """What stayed below its target."""
    slow = [row["stage"] for row in rows if row["samples_per_second"] < (row.get("target") or 0)]
    hungry = [row["stage"] for row in rows if row["waiting"] >= WAITING]
    return "\n".join(
        f"{what}: {', '.join(dict.fromkeys(stages)) or 'none'}"
        for what, stages in (("below the target (!)", slow), (f"waiting for data {WAITING:.0%} and more", hungry))
    )


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The options, those of `--gpu` and `--dry` filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", metavar="STAGE", choices=STAGES, help=f"of {', '.join(STAGES)}")
    parser.add_argument("--warm-up", type=int, help="updates before those (default: 20; 40 on a GPU)")
    parser.add_argument("--updates", type=int, help="counted updates (default: 20; 60 on a GPU)")
    parser.add_argument("--precisions", nargs="+", help="(default: 32-true and bf16-mixed; the latter on a GPU)")
    parser.add_argument("--threads", type=int, default=2, help="threads of one operator (default: %(default)s)")
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE", help="further settings of the recipes")
    parser.add_argument("--out", type=Path, help="JSON file to write, row by row (on a GPU training.json)")
    parser.add_argument("--gpu", action="store_true", help=f"large batches, {READERS} readers, targets")
    parser.add_argument(
        "--dry", action="store_true", help="three updates after one, with the batches of the recipes, uncompiled"
    )
    parser.add_argument("--minutes", type=float, default=14, help="with --gpu, begin no stage that would end later")
    options = parser.parse_args(words)
    with_target_first = sorted(STAGES, key=lambda stage: STAGES[stage].target is None)
    options.stages = options.stages or (with_target_first if options.gpu else list(STAGES))
    options.precisions = options.precisions or (["bf16-mixed"] if options.gpu else ["32-true", "bf16-mixed"])
    for name, usual, on_gpu, dry in (("warm_up", 20, 40, 1), ("updates", 20, 60, 3)):  # ADP makes three on a batch
        if getattr(options, name) is None:
            setattr(options, name, dry if options.dry else on_gpu if options.gpu else usual)
    if options.gpu and options.out is None:
        options.out = Path("training.json")
    return options


def main() -> None:
    """Print a row a run, and write them as JSON."""
    if sys.argv[1:2] == ["--run"]:
        from hyperbagel.cli import main as hyperbagel

        hyperbagel(sys.argv[2:])
        return
    arguments = parsed()
    print("".join(f"{name:>{width}}" for name, width in COLUMNS.items()))
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    begun, longest = time.perf_counter(), 0.0
    for stage in arguments.stages:
        for precision in arguments.precisions:
            started = time.perf_counter()
            if arguments.gpu and started + longest - begun > 60 * arguments.minutes:
                print(f"{stage:>17}{precision:>12}  not begun: the time is over", flush=True)
                continue
            try:
                row = measure(stage, precision, arguments)
            except subprocess.CalledProcessError as error:
                if not arguments.gpu:
                    raise
                print(f"{stage:>17}{precision:>12}  failed with status {error.returncode}", flush=True)
                failed.append(stage)
                continue
            rows.append(row | ({"target": STAGES[stage].target} if arguments.gpu else {}))
            longest = max(longest, time.perf_counter() - started)
            print(line(rows[-1], next(r for r in rows if r["stage"] == stage)), flush=True)
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(rows, indent=2))
    if arguments.gpu:
        print(summary(rows))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
