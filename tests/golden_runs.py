"""What a refactoring must not change: short runs of every stage and command, recorded before and compared after.

    python -m tests.golden_runs record golden.json     # about ten minutes on two cores
    python -m tests.golden_runs compare golden.json    # lists what differs; exit status 1 if anything does
    python -m tests.golden_runs compare golden.json --only tscd adp        # those whose names hold a word

Each stage of nano size trains for six updates: whole, as adapters, and in two processes. Recorded are its curves to the
last bit, and hashes of the tensors of its checkpoint, whatever these are called; and the pictures and answers of the
shipped model. Equal files need the same machine, thread count and versions, so none is kept in the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from tqdm import tqdm

from tests.runs import nano_folder

MODEL = ("--model.init_args.model", "nano")
"""A model without zeros, in whose weights every part shows."""
ALONE = ("autoencoder", "understanding", "generation", "draft_head")
"""Stages that start from the model alone; the others go on from one another's branches, in this order."""
CHAIN = ("teacher_tuning", "cfg_distillation", "tscd", "dmdo", "reward_tuning", "adp", "refl")
SIX_UPDATES = ("--trainer.max_steps", "6"), ("--model.init_args.settings.max_updates", "6")
ADAPTERS = {stage: ("student",) for stage in ("cfg_distillation", "reward_tuning", "refl")}
ADAPTERS |= {"tscd": ("student", "critic"), "dmdo": ("student", "fake"), "adp": ("student", "critic")}
"""Stage -> its networks that can be adapters."""
IGNORED = ("time/", "data/", "epoch")
"""Beginnings of the names of curves that say how fast a run was."""
TIMED = ("tokens_per_second", "speedup")
"""Words in the names of others that do."""

RECORDED = """
trainer:
  logger:
    class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args: {save_dir: out, name: "", version: ""}
  callbacks+:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: out, filename: last, every_n_train_steps: 1}
"""

COMMANDS = {
    "generate": ("generate", "a photo of two green stars", "--steps", "8", "--out", "out/picture.png"),
    "generate, distilled": (
        *("generate", "a photo of two green stars", "--branch", "scenes/nfe6", "--steps", "6"),
        *("--out", "out/picture.png"),
    ),
    "edit": ("edit", "source.png", "Make the circle green.", "--steps", "8", "--out", "out/picture.png"),
    "edit, distilled": (
        *("edit", "source.png", "Make the circle green.", "--branch", "scenes/nfe6", "--steps", "6"),
        *("--out", "out/picture.png"),
    ),
    "chat": ("chat", "source.png", "Describe the picture in detail."),
    "chat, drafted": ("chat", "source.png", "Describe the picture in detail.", "--draft", "scenes/draft"),
    "test": ("test", "--config", "nano/pretrain", *MODEL),
    "test, distilled": ("test", "--config", "nano/distilled", *MODEL),
}


def run(arguments: Sequence[str], folder: Path) -> str:
    """What `hyperbagel` prints, run in a folder with one thread. Raises RuntimeError with its errors if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    script = folder / "run.py"  # a file: with several processes, the others run it again
    script.write_text("from hyperbagel.cli import main\n\nmain()\n")
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}:\n{done.stderr[-3000:]}")
    return done.stdout


def tensor_hashes(value: Any) -> list[str]:
    """Hashes of all tensors in nested containers, in an order that names do not decide."""
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return [hashlib.sha256(f"{tuple(value.shape)}{value.dtype}".encode() + raw).hexdigest()[:16]]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sorted(found for child in children for found in tensor_hashes(child))


def curves(folder: Path) -> dict[str, list[float]]:
    """The scalars of a run, but those that are times."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [
        tag
        for tag in events.Tags()["scalars"]
        if not tag.startswith(IGNORED) and not any(word in tag for word in TIMED)
    ]
    return {tag: [event.value for event in events.Scalars(tag)] for tag in sorted(tags)}


def train(stage: str, folder: Path, options: Sequence[str] = ()) -> dict[str, Any]:
    """The curves of six updates of a stage, and hashes of what it learnt."""
    (folder / "recorded.yaml").write_text(RECORDED)
    for file in (folder / "out").glob("*"):
        file.unlink()
    config = ("--config", f"nano/{stage}", "--config", "recorded.yaml", *MODEL)
    run(["fit", *config, *SIX_UPDATES[stage not in ALONE], *options], folder)
    checkpoint = torch.load(folder / "out" / "last.ckpt", weights_only=True)
    return {
        "curves": curves(folder / "out"),
        "weights": tensor_hashes(checkpoint["state_dict"]),
        "optimizers": tensor_hashes(checkpoint["optimizer_states"]),
    }


def command(arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """What a command draws, answers or measures, without what it took."""
    printed = run(arguments, folder)
    if arguments[0] == "chat":
        return {"answer": printed.strip()}
    if arguments[0] == "test":
        (report,) = (folder / "runs" / arguments[2]).rglob("report.json")
        rows = {name: result["rows"] for name, result in json.loads(report.read_text())["results"].items()}
        times = ("time/", *(f"speculation/{word}" for word in TIMED))
        return {
            f"{name}, {row}": {metric: value for metric, value in metrics.items() if not metric.startswith(times)}
            for name, found in rows.items()
            for row, metrics in found.items()
        }
    with Image.open(folder / "out" / "picture.png") as picture:
        return {"picture": hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()[:16]}


def golden(folder: Path, only: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All runs and commands, in a folder, or those whose names hold one of some words."""
    nano_folder(folder / "nano")
    (folder / "out").mkdir()
    adapters = {
        stage: [word for name in names for word in (f"--model.init_args.{name}.lora", "{rank: 2, alpha: 2}")]
        for stage, names in ADAPTERS.items()
    }
    kept = {stage: ("--model.init_args.settings.export", "other.safetensors") for stage in ADAPTERS}
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp_find_unused_parameters_true")
    runs = [(stage, stage, ()) for stage in (*ALONE, *CHAIN)]
    runs += [(f"{stage}, adapters", stage, (*adapters[stage], *kept[stage])) for stage in ADAPTERS]
    runs += [(f"{stage}, two processes", stage, (*two, *kept.get(stage, ()))) for stage in (*ALONE, *CHAIN)]
    for name, stage, options in tqdm(runs, "stages"):
        # Stages go on from one another's branches, so those of the chain cannot be left out.
        if name in CHAIN or not only or any(word in name for word in only):
            yield name, train(stage, folder, options)
    run(["generate", "a photo of a red circle", "--steps", "4", "--out", "source.png"], folder)
    for name, arguments in tqdm(COMMANDS.items(), "commands"):
        if not only or any(word in name for word in only):
            yield name, command(arguments, folder)


def differences(name: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for each recorded part of a run that is not the same."""
    lines = []
    for part in before | after:
        old, new = before.get(part), after.get(part)
        if isinstance(old, list) and isinstance(new, list):  # hashes
            gone, come = Counter(old) - Counter(new), Counter(new) - Counter(old)
            if gone or come:
                lines.append(
                    f"{name}: {part}: of {len(old)} gone {sorted(gone.elements())}, new {sorted(come.elements())}"
                )
        elif isinstance(old, dict) and isinstance(new, dict):
            differing = [key for key in old | new if old.get(key) != new.get(key)]
            lines += [f"{name}: {part}: {key}: {old.get(key)} -> {new.get(key)}" for key in differing]
        elif old != new:
            lines.append(f"{name}: {part}: {old} -> {new}")
    return lines


def main() -> None:
    """Record, or compare with what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="+", default=(), help="words, one of which the names of runs hold")
    options = parser.parse_args()
    recorded = json.loads(options.file.read_text()) if options.action == "compare" else {}
    found, changed = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for name, result in golden(Path(folder), options.only):
            found[name] = result
            if options.action == "record":  # as far as it came
                options.file.write_text(json.dumps(found, indent=1) + "\n")
            else:
                lines = differences(name, recorded[name], result)
                changed += len(lines)
                tqdm.write("\n".join(lines or [f"{name}: equal"]))
    print(f"{options.file}: {len(found)} runs and commands, {changed} differences")
    sys.exit(bool(changed))


if __name__ == "__main__":
    main()
