"""A callback of one's own: how far the student has moved from where it began."""

from typing import Any

import lightning as L
import torch
from torch import Tensor


class Drift(L.Callback):
    """Logs `drift`, the norm of the change of a submodule's weights over the norm they had, against student updates.

    Args:
        module: path of the submodule in the stage.
    """

    def __init__(self, module: str = "student") -> None:
        self.module = module
        self._start: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """The weights of the beginning, so that a resumed run measures from there."""
        return {"start": self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = state_dict["start"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = self._start or [p.detach().clone() for p in pl_module.get_submodule(self.module).parameters()]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        now = [p.detach() for p in pl_module.get_submodule(self.module).parameters()]
        moved = torch.stack([(a - b.to(a)).norm() for a, b in zip(now, self._start, strict=True)]).norm()
        drift = moved / torch.stack([p.norm() for p in self._start]).norm()
        pl_module.log_dict({"drift": float(drift), "step": float(pl_module.student_step)})
