"""What a person sees of `fit`, `test` and `predict`, and what TensorBoard has of a training."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyperbagel.callbacks.unusual_settings import unusual
from hyperbagel.cli import main
from hyperbagel.cli.quiet import leave_out_noise


@pytest.fixture
def output(
    nano_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    """Of two updates of stage 1, with TensorBoard."""
    monkeypatch.chdir(tmp_path)
    init = "{save_dir: runs, name: mine, version: ''}"
    logger = f"{{class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {init}}}"
    options = [
        "--model.init_args.model",
        nano_folder,
        "--trainer.logger",
        logger,
        "--trainer.enable_checkpointing",
        "false",
    ]
    main(["fit", "--config", "nano/cfg_distillation", *options])
    return capsys.readouterr()


def test_a_training_tells_how_far_it_is_and_what_it_left(
    output: tuple[str, str], nano_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, errors = output
    assert "Epoch" not in shown + errors and "litlogger" not in shown + errors and "validation_step" not in errors
    bar = shown.splitlines()[-6].split("\r")[-1]
    assert bar.startswith("update: 100%") and " 2/2 [" in bar and "cfg_distillation=" in bar
    branch = "runs/nano/branches/cfg.safetensors"
    assert shown.splitlines()[-5:] == [
        "2 updates done",
        f"branch: {branch}",
        f"  next: hyperbagel generate 'a photo of a red circle' --model {nano_folder} --branch {branch}",
        "files of the run: runs/mine",
        "  curves: tensorboard --logdir runs/mine",
    ]
    main(["generate", "a photo of a red circle", "--model", nano_folder, "--branch", branch])
    assert "50 NFE" in capsys.readouterr().out


def test_tensorboard_has_rates_documents_and_captions(output: tuple[str, str]) -> None:
    events = EventAccumulator("runs/mine")
    events.Reload()
    tags = events.Tags()
    assert {"lr/student", "samples_seen", "loss/cfg_distillation", "grad_norm/student"} <= set(tags["scalars"])
    assert [(e.step, e.value) for e in events.Scalars("samples_seen")] == [(1, 2), (2, 4)]
    (text,) = (tag for tag in tags["tensors"] if tag.startswith("images/captions"))
    (captions,) = events.Tensors(text)
    assert captions.tensor_proto.string_val[0].decode().startswith("1. a photo of")


def test_only_settings_that_are_no_defaults_are_compared() -> None:
    adp, rate = "hyperbagel.modules.ADP", "torch.optim.AdamW"
    settings = {
        "seed_everything": 0,
        "trainer.accelerator": "auto",
        "trainer.max_epochs": -1,
        "model.class_path": adp,
        "model.init_args.model": "scenes",
        "model.init_args.method.pair_weight": 0.1,
        "model.init_args.settings.max_updates": 30,
        "model.init_args.settings.steps": 6,
        "model.init_args.student.optimizer.class_path": rate,
        "model.init_args.student.optimizer.init_args.lr": 0.001,
        "model.init_args.student.optimizer.init_args.eps": 1e-6,
        "data.class_path": "mine.not_there.Data",
        "data.init_args.size": 3,
    }
    assert set(settings) - set(unusual(settings)) == {
        "seed_everything",
        "trainer.accelerator",
        "model.init_args.settings.steps",
        "model.init_args.student.optimizer.init_args.lr",
    }


def test_only_noise_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        leave_out_noise()
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use another", FutureWarning, stacklevel=1)
        warnings.warn("the loss is not what it was", UserWarning, stacklevel=1)
    assert [str(one.message) for one in seen] == ["the loss is not what it was"]
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with caplog.at_level(logging.INFO, logger.name):
        logger.info("Tip: try installing [litlogger]")
        logger.info("GPU available: False, used: False")
    assert [record.getMessage() for record in caplog.records if record.name == logger.name] == [
        "GPU available: False, used: False"
    ]
