"""A user's loss term in any distillation stage, from three lines of YAML."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import Callback

from hyperbagel.losses.term import LossTerm


class AddLoss(Callback):
    """Puts a loss term into a stage before its optimizers are built, so that its parameters train, move and resume.

    Args:
        term: the term, by class path; its name must be new to the stage.
    """

    def __init__(self, term: LossTerm) -> None:
        self.term = term
        self._added = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Add the term once. TypeError for a stage that takes none, ValueError for a name that is taken."""
        if not callable(getattr(pl_module, "add_loss", None)):
            raise TypeError(f"AddLoss: {type(pl_module).__name__} takes no loss terms (it has no `add_loss`)")
        if not self._added:
            pl_module.add_loss(self.term)  # type: ignore[operator]
            self._added = True
