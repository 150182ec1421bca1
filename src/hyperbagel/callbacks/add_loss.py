"""A user's loss term in any distillation stage, from three lines of YAML."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import lightning as L
from lightning.pytorch.callbacks import Callback

from hyperbagel.bagel.model import Bagel
from hyperbagel.losses.base import LossTerm


class AddLoss(Callback):
    """Puts a loss term into a stage before its optimizers are built, so that its parameters train, move and resume.

    Args:
        term: the term, by class path; its name must be new to the stage.

    Examples:
        >>> from hyperbagel.losses.regression import Regression
        >>> AddLoss(Regression("mine", weight=0.1)).term.name
        'mine'
    """

    def __init__(self, term: LossTerm) -> None:
        self.term = term
        self._added = False

    def requirements(self, stage: L.LightningModule, command: str) -> Iterator[Callable[[], object]]:
        """Of the term, see `check_requirements`."""
        model = getattr(stage, "model", None)
        if isinstance(model, Bagel) and isinstance(self.term, LossTerm):
            yield from self.term.requirements(model)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Add the term once. Raises ValueError for a stage that takes none, and for a name that is taken."""
        if not callable(getattr(pl_module, "add_loss", None)):
            raise ValueError(f"AddLoss: {type(pl_module).__name__} takes no loss terms (it has no `add_loss`)")
        if not self._added:
            pl_module.add_loss(self.term)  # type: ignore[operator]
            self._added = True
