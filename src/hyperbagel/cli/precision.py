"""`precision: auto` of the trainer: the fastest type in which training is stable on the machine at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

AUTO = "auto"
_OPTION = "--trainer.precision"


def fastest_precision() -> str:
    """`bf16-mixed` on a GPU or CPU with units that multiply matrices in bfloat16, else `32-true`.

    Processors that only convert to bfloat16 and back are ten times as slow in it.
    """
    import torch

    from hyperbagel.bagel.processor import cpu_multiplies_bfloat16

    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if cpu_multiplies_bfloat16() else "32-true"


def with_precision(settings: Any) -> Any:
    """The content of a YAML file with this machine's precision in place of `auto`, so that saved settings name it."""
    trainer = settings.get("trainer") if isinstance(settings, dict) else None
    if not isinstance(trainer, dict) or trainer.get("precision") != AUTO:
        return settings
    return settings | {"trainer": trainer | {"precision": fastest_precision()}}


def in_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments of the trainer, likewise."""
    result = list(arguments)
    for i, argument in enumerate(arguments):
        if argument == f"{_OPTION}={AUTO}":
            result[i] = f"{_OPTION}={fastest_precision()}"
        elif argument == AUTO and i and arguments[i - 1] == _OPTION:
            result[i] = fastest_precision()
    return result
