"""The settings of a run, kept beside its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback

from hyperbagel.callbacks.report import run_folder
from hyperbagel.files import whole_file


class WholeConfig(SaveConfigCallback):
    """Writes `config.yaml` into the run's folder, whole or not at all; that of an earlier command is replaced."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"save_to_log_dir": False})
        self._folder = Path()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ask for the folder, which all ranks have to, and write it on the first."""
        self._folder = run_folder(trainer)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the file. Raises WriteError."""
        with whole_file(self._folder / self.config_filename) as partial:  # by the call that Lightning makes
            self.parser.save(self.config, str(partial), skip_none=False, overwrite=True, multifile=False)
