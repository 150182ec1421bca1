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
        total: updates of the whole run; None: those of the stage, which a student's schedule follows.
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
        if warmup < 0 or decay < 0:
            raise ValueError(f"warmup {warmup} and decay {decay} must not be negative")
        if total is not None and warmup + decay > total:
            raise ValueError(f"warmup {warmup} and decay {decay} must fit into the total of {total} updates")
        self.warmup, self.total, self.decay = warmup, total, decay
        self.final, self.shape = final, shape
        super().__init__(optimizer)

    def end_at(self, total: int | None) -> None:
        """Have the schedule end after so many updates, unless it has a `total` of its own.

        In a shortened run that warmup and decay do not fit into, both are shorter in proportion.
        """
        if self.total is not None or total is None:
            return
        self.total = total
        if (length := self.warmup + self.decay) > total:
            self.warmup = self.warmup * total // length
            self.decay = total - self.warmup
            for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
                group["lr"] = rate
            self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def factor(self, step: int) -> float:
        """Share of the full rate in update `step`, counted from 0. Raises ValueError for a decay without a total."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if not self.decay or (self.total is None and not step):
            return 1.0
        if self.total is None:
            raise ValueError("a schedule with a decay needs `total`, or a stage with `max_updates`")
        done = min(max((step - (self.total - self.decay)) / self.decay, 0.0), 1.0)
        falling = (1 + math.cos(math.pi * done)) / 2 if self.shape == "cosine" else 1 - done
        return self.final + (1 - self.final) * falling

    def get_lr(self) -> list[float | Tensor]:
        """Rates of the groups at the current step."""
        return [float(base) * self.factor(self.last_epoch) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is; not what it is."""
        return {name: self.__dict__[name] for name in ("last_epoch", "_step_count", "_last_lr")}
