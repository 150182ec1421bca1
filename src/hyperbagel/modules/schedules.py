"""The learning-rate schedule of all stages: warm up, hold, decay."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupStableDecay(LRScheduler):
    """Linear warmup, then the full rate, then a decay at the end of the run.

    A resumed run goes on at its step of the schedule that is configured now: unlike with PyTorch's schedulers, lengths
    and rates of the checkpoint do not override it.

    Args:
        optimizer: whose groups' rates are scaled.
        warmup: updates until the full rate.
        total: updates of the whole run; needed for a decay.
        decay: updates of the decay, the last ones of the run. `total - warmup` decays from the start.
        final: share of the full rate that is left at the end.
        shape: of the decay.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: int = 0,
        total: int | None = None,
        decay: int = 0,
        final: float = 0.0,
        shape: Literal["linear", "cosine"] = "linear",
    ) -> None:
        if warmup < 0 or decay < 0 or (decay and total is None) or (total is not None and warmup + decay > total):
            raise ValueError(f"warmup {warmup} and decay {decay} must fit into the total of {total} updates")
        self.warmup, self.total, self.decay = warmup, total, decay
        self.final, self.shape = final, shape
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Share of the full rate in update `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.total is None or not self.decay:
            return 1.0
        done = min(max((step - (self.total - self.decay)) / self.decay, 0.0), 1.0)
        falling = (1 + math.cos(math.pi * done)) / 2 if self.shape == "cosine" else 1 - done
        return self.final + (1 - self.final) * falling

    def get_lr(self) -> list[float | Tensor]:
        """Rates of the groups at the current step."""
        return [float(base) * self.factor(self.last_epoch) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is; not what it is."""
        return {name: self.__dict__[name] for name in ("last_epoch", "_step_count", "_last_lr")}
