"""Checks everything that the callbacks of a run will need before anything is drawn or trained."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator

import lightning as L
from lightning.pytorch.callbacks import Callback

from hyperbagel.bagel.branch_checkpoint import branch_file, check_branch
from hyperbagel.bagel.model import Bagel
from hyperbagel.files import require_all


def check_requirements(callbacks: Iterable[Callback], stage: L.LightningModule, command: str) -> None:
    """Make the checks of all callbacks that have a method `requirements(stage, command)`, an iterator of them.

    command: fit, validate, test or predict. A check raises OSError or ValueError; what all of them found is told in one
    error, see `require_all`.
    """

    def checks() -> Iterator[Callable[[], object]]:
        for callback in callbacks:
            if callable(own := getattr(callback, "requirements", None)):
                yield from own(stage, command)

    require_all(checks())


def require_branch(path: str, model: Bagel) -> None:
    """Raises FileNotFoundError, or CheckpointError for a file that is no branch for the model. Reads no tensors."""
    if not branch_file(path).is_file():
        raise FileNotFoundError(errno.ENOENT, "no such branch file", path)
    check_branch(path, model)
