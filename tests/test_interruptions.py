"""Runs that are killed at random moments end with the weights of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
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
from tests.runs import nano_folder

CONFIGS = Path(__file__).parents[1] / "configs" / "nano"
PRETRAINING = ("understanding", "generation")
DISTILLATION = ("cfg", "tscd", "tuning", "dmdo", "adp", "refl")
STAGES = (*PRETRAINING, "draft", *DISTILLATION)
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


def overlay(stage: str, folder: Path) -> Path:
    """More updates, a checkpoint after each, and files of this run's own, laid over the stage's nano configuration."""
    saver = {"dirpath": str(folder / "checkpoints"), "save_last": True, "every_n_train_steps": 1}
    callbacks = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver}]
    if stage not in ("draft", "tscd", "tuning"):  # the last two keep an average of their own
        module = "model" if stage in PRETRAINING else "student"
        callbacks.append({"class_path": "hyperbagel.callbacks.EMA", "init_args": {"module": module}})
    trainer: dict[str, Any] = {
        "default_root_dir": str(folder),
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}},
        "callbacks": callbacks,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    content: dict[str, Any] = {"trainer": trainer}
    if stage in DISTILLATION:
        settings = {"max_updates": UPDATES, "export": str(folder / "branch.safetensors")}
        first: dict[str, Any] = {} if stage == "cfg" else {"init_from": None}
        if stage == "dmdo":
            first["dmdo"] = {"fake_from": None}
        content["model"] = {"init_args": {"settings": settings, **first}}
    else:
        trainer |= {"max_steps": UPDATES, "max_epochs": -1}
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


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nano_folder(tmp_path / "fresh" / "nano")
    monkeypatch.chdir(tmp_path)
    config = str(CONFIGS / f"{stage}.yaml")

    def command(name: str) -> list[str]:
        path = tmp_path / name / "overlay.yaml"
        path = path if path.exists() else overlay(stage, tmp_path / name)
        return ["fit", "--config", config, "--config", str(path), "--ckpt_path", "last"]

    assert run(command("whole")) == 0
    moment = random.Random(stage)
    for _ in range(KILLS):
        fate = partial(doom, moment.randint(2, 4), moment.random())
        assert run(command("killed"), fate) == -signal.SIGKILL
    assert run(command("killed")) == 0
    expected, got = result(tmp_path / "whole"), result(tmp_path / "killed")
    assert int(expected["student_step"]) == UPDATES
    assert expected.keys() == got.keys()
    assert not [name for name, value in expected.items() if not torch.equal(value, got[name])]
    exported = "draft.safetensors" if stage == "draft" else "branch.safetensors"
    if stage not in PRETRAINING:
        one, other = (next((tmp_path / name).rglob(exported)).read_bytes() for name in ("whole", "killed"))
        assert one == other
