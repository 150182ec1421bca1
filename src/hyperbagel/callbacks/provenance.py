"""The callback `Provenance`: versions, weights and cost of a run, and its settings for loggers."""

from __future__ import annotations

import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

import hyperbagel
from hyperbagel.bagel.branch_checkpoint import base_hash
from hyperbagel.bagel.model import Bagel
from hyperbagel.callbacks.evaluation import Evaluation
from hyperbagel.callbacks.report import run_folder
from hyperbagel.callbacks.unusual_settings import unusual
from hyperbagel.files import write_json
from hyperbagel.training.stage import student_updates

PACKAGES = ("torch", "lightning", "transformers", "diffusers", "numpy")


class Cost(NamedTuple):
    """What a run took, of this process."""

    seconds: float
    cpu_seconds: float


def device_name(device: torch.device) -> str:
    """What computes, as people call it: a GPU's name, or a processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    listed, threads = Path("/proc/cpuinfo"), torch.get_num_threads()
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {threads} thread{'s' * (threads != 1)}"


class Provenance(Callback):
    """Writes `provenance.json` into the run's folder when a command ends: versions, the model's fingerprint, updates,
    the device, and wall-clock and CPU seconds, those up to the checkpoint that it went on from included. And logs the
    settings that are no defaults with the results, so that TensorBoard's HParams compares runs; other loggers get the
    settings alone.

    The settings themselves are in `config.yaml` beside it.

    Examples:
        >>> from hyperbagel.callbacks import Report
        >>> callbacks = [Provenance(), Report()]  # what a run leaves beside its checkpoints
    """

    def __init__(self) -> None:
        self._begin: dict[str, Any] = {}
        self._before = Cost(0.0, 0.0)

    @property
    def cost(self) -> Cost:
        """So far, with that of earlier legs of a training."""
        if not self._begin:
            return self._before
        wall, cpu = time.perf_counter() - self._begin["wall"], time.process_time() - self._begin["cpu"]
        return Cost(self._before.seconds + wall, self._before.cpu_seconds + cpu)

    def state_dict(self) -> dict[str, Any]:
        """What the training took until now."""
        return self.cost._asdict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from there."""
        self._before = Cost(**state_dict)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Note the start; a model that trains has its fingerprint taken before."""
        model = getattr(pl_module, "model", None)
        self._before = Cost(0.0, 0.0)
        self._begin = {
            "command": stage,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall": time.perf_counter(),
            "cpu": time.process_time(),
            "base": base_hash(model) if isinstance(model, Bagel) else None,
        }

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the file and the summary."""
        folder = run_folder(trainer)  # ranks agree on it, so all of them have to ask
        if not trainer.is_global_zero or trainer.fast_dev_run or not self._begin:  # type: ignore[attr-defined]
            return
        write_json(folder / "provenance.json", self._record(pl_module))
        self._summarize(trainer, student_updates(pl_module))

    def _record(self, pl_module: L.LightningModule) -> dict[str, Any]:
        trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        return {
            "stage": f"{type(pl_module).__module__}.{type(pl_module).__qualname__}",
            "command": self._begin["command"],
            "started": self._begin["started"],
            "seconds": round(self.cost.seconds, 1),
            "cpu_seconds": round(self.cost.cpu_seconds, 1),
            "device": device_name(pl_module.device),
            "student_step": student_updates(pl_module),
            "parameters": {"all": sum(p.numel() for p in pl_module.parameters()), "trained": trained},
            "base_model": {"folder": str(getattr(pl_module, "folder", "")), "fingerprint": self._begin["base"]},
            "versions": {"hyperbagel": hyperbagel.__version__, "python": platform.python_version()}
            | {package: version(package) for package in PACKAGES},
        }

    def _summarize(self, trainer: L.Trainer, step: int) -> None:
        metrics: dict[str, float] = {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Evaluation) and callback.findings.rows:
                metrics |= next(iter(callback.findings.rows.values()))
        if not (settings := _settings(trainer)):
            return
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings)
            elif metrics:
                results = {f"hparams/{name}": value for name, value in metrics.items()}
                logger.log_hyperparams(settings, results, step)


def _settings(trainer: L.Trainer) -> dict[str, Any]:
    """The scalars of the command line's configuration that are no defaults, by dotted name; nothing without one."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SaveConfigCallback):
            flat = vars(callback.config.as_flat())
            scalars = {k: v for k, v in flat.items() if isinstance(v, str | int | float | bool) and k != "config"}
            return unusual(scalars)
    return {}
