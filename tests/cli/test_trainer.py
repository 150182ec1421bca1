"""Settings read from YAML files, and what every run of the trainer has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from hyperbagel.callbacks import Safeguard
from hyperbagel.cli.precision import fastest_precision
from hyperbagel.cli.trainer import TrainerCLI, read_arguments, read_config, run

CONFIGS = Path(__file__).parents[2] / "configs"


def test_later_files_override_earlier_ones_and_leave_the_rest(tmp_path: Path) -> None:
    """Also inside the part that a class path chooses."""
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "model: {init_args: {method: {renoise: ode}, student: {accumulate: 3}}}\ntrainer: {devices: 4}\n"
    )
    base, changed = (
        read_config([CONFIGS / "nano" / "dmdo.yaml"]),
        read_config([CONFIGS / "nano" / "dmdo.yaml", overlay]),
    )
    assert (base.model.init_args.method.renoise, changed.model.init_args.method.renoise) == ("sde", "ode")
    assert changed.model.init_args.student.accumulate == 3 and changed.trainer.devices == 4
    assert changed.model.init_args.method.fake_updates == base.model.init_args.method.fake_updates == 2
    assert changed.model.init_args.init_from == base.model.init_args.init_from


def test_every_run_is_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the callbacks of the configuration, and without being named in it."""
    seen: list[TrainerCLI] = []
    monkeypatch.setattr(TrainerCLI, "_run_subcommand", lambda self, subcommand: seen.append(self))
    for step in ("instantiate_classes", "after_instantiate_classes"):
        monkeypatch.setattr(TrainerCLI, step, lambda self: None)
    run(["fit", "--config", str(CONFIGS / "nano" / "dmdo.yaml")])
    (cli,) = seen
    assert any(isinstance(callback, Safeguard) for callback in cli.trainer_defaults["callbacks"])


LOGGER = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs", "name": "mine"}}


@pytest.mark.parametrize(
    ("trainer", "folder"),
    [({"logger": LOGGER}, "logs/mine"), ({"logger": LOGGER, "default_root_dir": "own"}, "own"), ({}, "")],
)
def test_a_runs_folder_is_its_loggers_unless_it_is_set(
    trainer: dict[str, object], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the trainer puts what the logger does not, such as checkpoints for a cluster's requeueing."""
    monkeypatch.chdir(tmp_path)
    seen: list[TrainerCLI] = []
    monkeypatch.setattr(TrainerCLI, "_run_subcommand", lambda self, subcommand: seen.append(self))
    Path("overlay.yaml").write_text(yaml.safe_dump({"trainer": {"default_root_dir": None} | trainer}))
    run(["fit", "--config", str(CONFIGS / "nano" / "cfg_distillation.yaml"), "--config", "overlay.yaml"])
    assert Path(seen[0].trainer.default_root_dir).resolve() == tmp_path / folder


@pytest.mark.parametrize(
    ("cuda", "amx", "avx512", "expected"),
    [
        (True, False, False, "bf16-mixed"),
        (False, True, False, "bf16-mixed"),
        (False, False, True, "bf16-mixed"),
        (False, False, False, "32-true"),
    ],
)
def test_the_fastest_precision_is_that_of_the_units_that_are_there(
    cuda: bool, amx: bool, avx512: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert fastest_precision() == expected


@pytest.mark.parametrize("options", [["--trainer.precision", "auto"], ["--trainer.precision=auto"], []])
def test_auto_is_the_precision_that_was_taken_in_what_is_saved(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line, or from a file."""
    monkeypatch.setattr("hyperbagel.cli.precision.fastest_precision", lambda: "16-mixed")
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("trainer: {precision: auto}" if not options else "{}")
    files = ["--config", str(CONFIGS / "nano" / "pretrain.yaml"), "--config", str(overlay)]
    assert read_arguments(["fit", *files, *options]).trainer.precision == "16-mixed"
