"""What keeps a run safe: whole checkpoints, a stop at what is not finite, a save when the run is told to end."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.distributed.tensor import DTensor

from hyperbagel.callbacks.report import run_folder
from hyperbagel.files import whole_file, write_json

FAILURE = "failure.json"
log = logging.getLogger(__name__)


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then renames it, so that a crash or a full disk leaves the old file.

    Lightning writes to the system's temporary folder first; from there to another disk, moving is copying, which can
    stop halfway. Reading never unpickles anything but tensors and plain values.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write all of it, or raise WriteError and leave what was there. Places that are no files: as Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with whole_file(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: _PATH, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read tensors and plain values only, whatever `weights_only` says."""
        return super().load_checkpoint(path, map_location, weights_only=True)


class Safeguard(Callback):
    """Part of every `hyperbagel fit`.

    * Checkpoints are written completely or not at all.
    * A loss or a gradient that is not finite, or a loss beyond `largest_loss`, stops the run before the weights take it
      in; `failure.json` in the run's folder holds what happened, where, and the keys of the batch's documents.
    * On SIGTERM, which clusters send before they take a machine away, the batch is finished and `last.ckpt` is written;
      `--ckpt_path last` then goes on with the next batch.

    Args:
        largest_loss: absolute value of a loss above which a run counts as exploded.
    """

    def __init__(self, largest_loss: float = 1e6) -> None:
        self.largest_loss = largest_loss
        self._batch: dict[str, Any] = {}
        self._folder = Path()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Have checkpoints written whole, unless another way of writing them was chosen."""
        self._folder = run_folder(trainer)  # asks all ranks, so not when one of them fails
        with suppress(NotImplementedError):  # strategies that write sharded checkpoints themselves
            if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
                trainer.strategy.checkpoint_io = WholeCheckpointIO()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember what is being learnt from."""
        keys = list(getattr(batch, "keys", ()))
        self._batch = {"batch": batch_idx, "source": getattr(batch, "source", None), "keys": keys}

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Raises FloatingPointError for a loss that is not finite or too large."""
        value = float(loss.detach())
        if not abs(value) <= self.largest_loss:
            raise FloatingPointError(f"the loss is {value}{self._place(pl_module)}")

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Raises FloatingPointError for a gradient that is not finite, unless a scaler of float16 looks at it."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not bool(norm.isfinite()):
            raise FloatingPointError(f"a gradient is not finite{self._place(pl_module)}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raises FloatingPointError for a measured loss or score that is not finite."""
        for name, value in trainer.callback_metrics.items():
            measured = name.startswith("val/") or trainer.state.fn != "fit"  # in fit they are among those of training
            if measured and not bool(value.isfinite().all()):
                raise FloatingPointError(f"{name} is {float(value)} at student update {_step(pl_module)}")

    on_test_end = on_validation_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Note a failure; save when the run was told to end."""
        if isinstance(exception, FloatingPointError):
            record = {"error": str(exception), "student_step": _step(pl_module), **self._batch}
            path = self._folder / (FAILURE if trainer.is_global_zero else f"rank{trainer.global_rank}-{FAILURE}")
            write_json(path, record)
            log.error("%s; details in %s", exception, path)
        elif isinstance(exception, SIGTERMException):
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        """Into the folder of the first ModelCheckpoint, where `--ckpt_path last` looks for it."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
                name = callback.CHECKPOINT_NAME_LAST + callback.FILE_EXTENSION
                callback.last_model_path = callback.last_model_path or str(Path(callback.dirpath) / name)
                trainer.save_checkpoint(callback.last_model_path)
                log.warning("told to end: saved %s, go on with --ckpt_path last", callback.last_model_path)
                return
        log.warning("told to end, and there is no ModelCheckpoint to save with")

    def _place(self, pl_module: L.LightningModule) -> str:
        shown = ", ".join(self._batch.get("keys", [])[:4])
        return (
            f" at student update {_step(pl_module)} on documents {shown}, ... of source {self._batch.get('source')!r}"
        )


def _step(pl_module: L.LightningModule) -> int:
    return int(getattr(pl_module, "student_step", pl_module.global_step))
