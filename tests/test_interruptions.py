"""Runs that are killed or told to end come to the weights of a run that nobody disturbed; until they do, and where they
fail, their status says so."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.optim.optimizer import register_optimizer_step_pre_hook

import hyperbagel.cli.trainer  # noqa: F401  what forked processes then need not import
from hyperbagel.cli import main
from hyperbagel.training.distillation import DistillationStage
from tests.runs import nano_folder
from tests.stages import STAGES as ROWS

CONFIGS = Path(__file__).parents[1] / "configs" / "nano"
STAGES = {config: row for row in ROWS.values() for config in row.configs}
KILLS, UPDATES = 3, 20


def run(arguments: Sequence[str], prepare: Callable[[], None] = lambda: None) -> int:
    """The exit status of a process that runs the command; forked, since importing takes longer than training."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        prepare()
        main(arguments)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    os._exit(status)


def doom(step: int, share: float) -> None:
    """Have this process killed some time behind an optimizer's step, at the latest two steps later."""
    times: list[float] = []

    def count(*_: object) -> None:
        times.append(time.monotonic())
        if len(times) == step:
            threading.Timer(share * (times[-1] - times[-2]), die).start()
        if len(times) == step + 2:
            die()

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(count)


def tell(number: int, step: int) -> None:
    """Have this process, in the middle of a batch, told to end."""
    steps = iter(range(1, step + 1))
    register_optimizer_step_pre_hook(lambda *_: os.kill(os.getpid(), number) if next(steps, 0) == step else None)


def overlay(stage: str, folder: Path) -> Path:
    """More updates, a checkpoint after each, and files of this run's own, laid over the stage's nano configuration."""
    saver = {"dirpath": str(folder / "checkpoints"), "save_last": True, "every_n_train_steps": 1}
    callbacks = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver}]
    row = STAGES[stage]
    if row.averaged is not None:
        callbacks.append({"class_path": "hyperbagel.callbacks.EMA", "init_args": {"module": row.averaged}})
    trainer: dict[str, Any] = {
        "default_root_dir": str(folder),
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}},
        "callbacks": callbacks,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    settings: dict[str, Any] = {"max_updates": UPDATES}
    if issubclass(row.of, DistillationStage):
        settings["export"] = str(folder / "branch.safetensors")
    trainer |= {"max_steps": -1, "max_epochs": -1}
    content = {"trainer": trainer, "model": {"init_args": {"settings": settings, **row.alone}}}
    folder.mkdir(parents=True)
    path = folder / "overlay.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def result(folder: Path) -> dict[str, torch.Tensor]:
    """All weights at the end of a run, with what optimizers and averages keep."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    found = dict(checkpoint["state_dict"])
    for i, optimizer in enumerate(checkpoint["optimizer_states"]):
        for j, state in optimizer["state"].items():
            found |= {f"optimizer{i}.{j}.{k}": v for k, v in state.items() if isinstance(v, torch.Tensor)}
    return found


def commands(stage: str, folder: Path) -> Callable[..., list[str]]:
    """The command by which a run of a name, and a folder of its own, starts and goes on."""
    nano_folder(folder / "fresh" / "nano")

    def command(name: str, *options: str) -> list[str]:
        path = folder / name / "overlay.yaml"
        path = path if path.exists() else overlay(stage, folder / name)
        config = str(CONFIGS / f"{stage}.yaml")
        return ["fit", "--config", config, "--config", str(path), "--ckpt_path", "last", *options]

    return command


def check_equal(whole: Path, other: Path) -> None:
    expected, got = result(whole), result(other)
    assert int(expected["student_step"]) == UPDATES
    assert expected.keys() == got.keys()
    assert not [name for name, value in expected.items() if not torch.equal(value, got[name])]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = commands(stage, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(command("whole")) == 0
    moment = random.Random(stage)
    for _ in range(KILLS):
        fate = partial(doom, moment.randint(2, 4), moment.random())
        assert run(command("killed"), fate) == -signal.SIGKILL
    assert run(command("killed")) == 0
    check_equal(tmp_path / "whole", tmp_path / "killed")
    if (exported := STAGES[stage].leaves) is not None:
        one, other = (next((tmp_path / name).rglob(exported)).read_bytes() for name in ("whole", "killed"))
        assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["generation", "tscd"])  # of one network, and of two
def test_a_run_that_is_told_to_end_says_so_and_goes_on(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = commands(stage, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(command("whole")) == 0
    assert run(command("told"), partial(tell, signal.SIGTERM, 3)) == 143
    assert run(command("told"), partial(tell, signal.SIGINT, 4)) == 130
    assert run(command("told")) == 0
    check_equal(tmp_path / "whole", tmp_path / "told")


def kill_worker() -> None:
    """Kill a data worker behind the second step, as a machine out of memory does."""
    steps = iter(range(3))

    def kill(*_: object) -> None:
        if next(steps, 0) == 1:
            multiprocessing.active_children()[0].kill()

    register_optimizer_step_pre_hook(kill)


def full_disk() -> None:
    """No room for a checkpoint."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fate", "told"), [(kill_worker, "hyperbagel fit: DataLoader worker"), (full_disk, "File too large")]
)
def test_a_run_that_fails_does_not_look_finished(
    fate: Callable[[], None], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    command = commands("generation", tmp_path)
    monkeypatch.chdir(tmp_path)
    workers = ("--data.init_args.reader.num_workers", "1")
    assert run(command("failed", *workers), fate) == 1
    shown = capfd.readouterr().err
    assert told in shown and "Traceback" not in shown


SCRIPT = """\
from hyperbagel.cli import main

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_all_processes_of_a_run_end_together(tmp_path: Path) -> None:
    """Though only the first one is told."""
    command = commands("generation", tmp_path)
    (tmp_path / "run.py").write_text(SCRIPT)
    until = "--model.init_args.settings.max_updates"
    options = ("--trainer.devices", "2", "--trainer.strategy", "ddp", until, "100000")
    process = subprocess.Popen(
        [sys.executable, "run.py", *command("both", *options)], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    saved = tmp_path / "both" / "checkpoints" / "last.ckpt"
    while not saved.exists() and process.poll() is None:
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 143, shown
    assert f"--ckpt_path {saved}" in shown
    step = int(torch.load(saved, weights_only=True)["state_dict"]["student_step"])
    done = (until, str(step + 2))
    again = [sys.executable, "run.py", *command("both", *options, *done)]
    subprocess.run(again, cwd=tmp_path, check=True, timeout=120)
    assert int(torch.load(saved, weights_only=True)["state_dict"]["student_step"]) == step + 2
