"""Settings read from YAML files, and what every run of the trainer has."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperbagel.callbacks import Safeguard
from hyperbagel.cli.trainer import TrainerCLI, read_config, run

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
