"""Leaves out what libraries say that nobody can act on."""

from __future__ import annotations

import logging
import warnings

_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own use of PyTorch
    r"You passed in a `val_dataloader` but have no `validation_step`",  # the data module of all stages has one
    r"Mismatch dtype between input and weight",  # mixed precision, which was asked for
    r"LightningCLI's args parameter",
)
"""Beginnings of warnings, as regular expressions."""

_NOTICES = ("litlogger", "litmodels", "TPU available", "HPU available", "`weights_only`")
"""What is in notices of Lightning that are advertisements, or about nothing."""


_LOGGERS = (
    "pytorch.utilities.rank_zero",
    "fabric.utilities.rank_zero",
    "pytorch.trainer.connectors.checkpoint_connector",
)


def leave_out_noise() -> None:
    """From now on; real warnings stay."""
    for beginning in _WARNINGS:
        warnings.filterwarnings("ignore", beginning)
    for name in _LOGGERS:
        logger = logging.getLogger(f"lightning.{name}")
        if _is_wanted not in logger.filters:
            logger.addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not any(notice in record.getMessage() for notice in _NOTICES)
