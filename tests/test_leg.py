"""The script that trains for some minutes goes on from what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_legs_go_on_from_each_other(nano_folder: str, tmp_path: Path) -> None:
    command = tmp_path / "hyperbagel"
    command.write_text(f"#!{sys.executable}\nfrom hyperbagel.cli import main\n\nmain()\n")
    command.chmod(0o755)
    state = tmp_path / "state"
    for updates in (2, 3):
        subprocess.run(
            [
                *(ROOT / "scripts" / "leg.sh", "nano/generation", state, "5"),
                *("--model.init_args.model", nano_folder, "--trainer.max_steps", str(updates)),
            ],
            env=os.environ | {"HYPERBAGEL": str(command)},
            cwd=tmp_path,
            check=True,
        )
        assert json.loads((state / "state.json").read_text())["checkpoint"]["global_step"] == updates
    assert all(file.stat().st_size < 2**24 for file in state.iterdir())
