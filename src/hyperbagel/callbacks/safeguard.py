"""The callback `Safeguard`: whole checkpoints, a stop at what is not finite, a save when a run is told to end."""

from __future__ import annotations

import logging
import pickle
import shlex
import signal
import traceback
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.distributed.tensor import DTensor

from hyperbagel.callbacks.report import run_folder
from hyperbagel.callbacks.stop_request import StopRequest
from hyperbagel.files import whole_file, write_json
from hyperbagel.training.optimization import Optimization
from hyperbagel.training.resuming import keep_base_rates, keep_settings
from hyperbagel.training.stage import student_updates
from hyperbagel.training.watch import Watch

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
        """Read tensors and plain values only, whatever `weights_only` says. Errors: as `readable_checkpoint`."""
        with readable_checkpoint(path):
            return super().load_checkpoint(path, map_location, weights_only=True)


@contextmanager
def readable_checkpoint(path: _PATH) -> Iterator[None]:
    """Reading a checkpoint inside: raises FileNotFoundError, or ValueError for one that is cut or something else.

    path: a local file; of anything else (`last`, a sharded checkpoint's folder, a URL), reading tells.
    """
    place = Path(path)
    if place.suffix and ":" not in str(path) and not place.is_dir():
        if not place.is_file():
            raise FileNotFoundError(f"{path}: no such checkpoint; give a run's .ckpt file, or last")
        if not zipfile.is_zipfile(place):
            raise ValueError(f"{path}: not a whole checkpoint (cut, empty, or another kind of file); give another")
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: not read, since it holds more than tensors and plain values") from error


class Safeguard(Callback):
    """Part of every `hyperbagel fit`, `validate`, `test` and `predict`.

    * Checkpoints are written completely or not at all.
    * A loss or a gradient that is not finite, or a loss beyond `largest_loss`, stops the run before the weights take it
      in. An accelerator is not waited for in every update: there it stops within `log_every_n_steps` batches, and
      before anything is saved.
    * On SIGTERM, which clusters send before they take a machine away, and on SIGINT (Ctrl+C), the batch is finished,
      `last.ckpt` is written, and the process ends with status 143 or 130. A second Ctrl+C ends it at once, unsaved.
      What does not train ends with these statuses at once.
    * When `trainer.max_time` is over, `last.ckpt` is written too. A resumed run has as much time again.
    * A resumed run trains by the optimizer settings that are configured now, and tells where the checkpoint's differ.
    * Where training fails, `failure.json` in the run's folder holds what happened, where, and the keys of the batch's
      documents.

    Args:
        largest_loss: absolute value of a loss above which a run counts as exploded.

    Examples:
        >>> Safeguard(largest_loss=1e4).largest_loss
        10000.0
    """

    def __init__(self, largest_loss: float = 1e6) -> None:
        self.largest_loss = largest_loss
        self._batch: dict[str, Any] = {}
        self._folder = Path()
        self._stop = StopRequest()
        self._own_watch = Watch()  # of modules that have none

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Have checkpoints written whole, unless another way of writing them was chosen."""
        self._folder = run_folder(trainer)  # asks all ranks, so not when one of them fails
        self._batch, self._stop = {}, StopRequest()
        with suppress(NotImplementedError):  # strategies that write sharded checkpoints themselves
            if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
                trainer.strategy.checkpoint_io = WholeCheckpointIO()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Have settings of optimizers stay what they are configured to be, before a checkpoint is read."""
        for optimizer in trainer.optimizers:
            keep_settings(optimizer, log.warning if trainer.is_global_zero else lambda message: None)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Have `max_time` count from here, not from the beginning of the first of several legs."""
        for timer in _timers(trainer):
            checkpoint.get("callbacks", {}).pop(timer.state_key, None)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to signals as soon as the trainer does."""
        self._stop.listen(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to signals where no sanity check came first; rates start from those that are configured."""
        self._stop.listen(trainer)
        for config in trainer.lr_scheduler_configs:
            keep_base_rates(config.scheduler)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save when the time is over."""
        remaining = [timer.time_remaining() for timer in _timers(trainer)]
        if any(seconds is not None and seconds <= 0 for seconds in remaining):
            self._save(trainer, "the time is over")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to signals in `validate`."""
        self._stop.listen(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to signals in `test`."""
        self._stop.listen(trainer)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to signals in `predict`."""
        self._stop.listen(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember what is being learnt from."""
        keys = list(getattr(batch, "keys", ()))
        self._batch = {"batch": batch_idx, "source": getattr(batch, "source", None), "keys": keys}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if any process was told to end."""
        self._stop.agree(trainer)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Raises FloatingPointError for a loss that is not finite or too large."""
        value, place = loss.detach(), self._place(pl_module)
        self._watch(pl_module).expect(value.abs() <= self.largest_loss, lambda: f"the loss is {float(value)}{place}")

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Raises FloatingPointError for a gradient that is not finite, unless a scaler of float16 looks at it."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        place = self._place(pl_module)
        self._watch(pl_module).expect(norm.isfinite(), lambda: f"a gradient is not finite{place}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raises FloatingPointError for a measured loss or score that is not finite."""
        for name, value in trainer.callback_metrics.items():
            measured = name.startswith("val/") or trainer.state.fn != "fit"  # in fit they are among those of training
            if measured and not bool(value.isfinite().all()):
                raise FloatingPointError(f"{name} is {float(value)} at student update {student_updates(pl_module)}")

    on_test_end = on_validation_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Note a failure; save when the run was told to end."""
        if isinstance(exception, SIGTERMException):
            exception.code = self._stop.status(trainer)
            if trainer.state.fn == TrainerFn.FITTING:
                self._save(trainer, f"told to end ({signal.Signals(self._stop.number or signal.SIGTERM).name})")
        elif isinstance(exception, Exception) and self._batch:
            self._note_failure(trainer, pl_module, exception)

    def _watch(self, pl_module: L.LightningModule) -> Watch:
        return pl_module.watch if isinstance(pl_module, Optimization) else self._own_watch

    def _note_failure(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: Exception) -> None:
        record = {"error": str(exception), "student_step": student_updates(pl_module), **self._batch}
        record["traceback"] = "".join(traceback.format_exception(exception)).splitlines()
        path = self._folder / (FAILURE if trainer.is_global_zero else f"rank{trainer.global_rank}-{FAILURE}")
        with suppress(OSError):  # the disk may be what failed
            write_json(path, record)
            log.error("training failed; details in %s", path)

    def _save(self, trainer: L.Trainer, why: str) -> None:
        """Into the folder of the first ModelCheckpoint, where `--ckpt_path last` looks for it."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
                path = trainer.strategy.broadcast(_last_path(callback))
                callback.last_model_path = path
                trainer.save_checkpoint(path)
                advice = f"go on with the same command and --ckpt_path {shlex.quote(path)}"
                log.warning("%s: saved %s; %s", why, path, advice)
                return
        log.warning("%s, and there is no ModelCheckpoint to save with: nothing is kept", why)

    def _place(self, pl_module: L.LightningModule) -> str:
        shown = ", ".join(self._batch.get("keys", [])[:4])
        place = f" at student update {student_updates(pl_module)}"
        return f"{place} on documents {shown}, ... of source {self._batch.get('source')!r}"


def _last_path(callback: ModelCheckpoint) -> str:
    """The run's own `last.ckpt`; that of another run in the same folder stays, as ModelCheckpoint has it."""
    if callback.last_model_path:
        return callback.last_model_path
    folder, name, suffix = Path(callback.dirpath or ""), callback.CHECKPOINT_NAME_LAST, callback.FILE_EXTENSION
    path, version = folder / f"{name}{suffix}", callback.STARTING_VERSION
    while path.exists():
        path, version = folder / f"{name}-v{version}{suffix}", version + 1
    return str(path)


def _timers(trainer: L.Trainer) -> list[Timer]:
    """Those that end the run; the trainer has one for its `max_time`."""
    return [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
