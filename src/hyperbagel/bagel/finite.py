"""Checks for NaN and infinite numbers, which end the work where they appear instead of becoming black pictures."""

from __future__ import annotations

from torch import Tensor


class NotFiniteError(FloatingPointError, ValueError):
    """Numbers that are not finite; the message says where they are, and of what file or step."""


def require_finite(values: Tensor, where: str) -> None:
    """Raises NotFiniteError, with `where` before the count, unless all values are finite. Waits for the device."""
    bad = int((~values.isfinite()).sum())
    if bad:
        raise NotFiniteError(f"{where}: {bad:,} of {values.numel():,} numbers are not finite (NaN or infinite)")
