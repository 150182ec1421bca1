"""The progress bar of `fit`: student updates done of all, losses, and the time that is left."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from hyperbagel.training.optimization import Optimization
from hyperbagel.training.stage import student_updates

_MOST = 3
"""Losses that fit beside a bar."""


class UpdateBar(TQDMProgressBar):
    """Lightning's progress bar, but over student updates in `fit`: `update 12/30 ... 0:10<0:15, velocity=0.31`."""

    def init_train_tqdm(self) -> Tqdm:
        """A bar over all updates, from those that were there on; without a limit it has no end."""
        stage = self.trainer.lightning_module
        return Tqdm(
            desc="update",
            total=stage.updates if isinstance(stage, Optimization) else None,
            initial=student_updates(stage),
            disable=self.is_disabled,
            leave=True,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0.1,
        )

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Go on: epochs are no part of the work to be done."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the updates, which may take several batches each.

        Losses on a GPU are looked at as often as they are logged: each look waits for all that it still has to do.
        """
        bar, done = self.train_progress_bar, student_updates(pl_module)
        if bar.disable or not (done - bar.n >= self.refresh_rate or done == bar.total):
            return
        if pl_module.device.type == "cpu" or (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            bar.set_postfix(losses(trainer), refresh=False)
        bar.update(done - bar.n)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on."""


def losses(trainer: L.Trainer) -> dict[str, str]:
    """The first losses that the last update logged, by name."""
    found = {
        name.removeprefix("loss/"): f"{float(value):.3g}"
        for name, value in trainer.callback_metrics.items()
        if name.startswith("loss/")
    }
    return dict(list(found.items())[:_MOST])
