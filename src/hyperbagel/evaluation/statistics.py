"""Confidence intervals for benchmark scores: bootstrap over prompts, within strata, and paired differences.

Images of one prompt are not independent, so the unit that is resampled is the prompt. A score such as GenEval's
overall is an unweighted mean over tasks: tasks are the strata, and their sizes stay fixed.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval [low, high]."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return format(self)

    def __format__(self, spec: str) -> str:
        """With three decimals; "+" shows signs, as differences have them."""
        return f"{self.estimate:{spec}.3f} [{self.low:{spec}.3f}, {self.high:{spec}.3f}]"


@dataclass(frozen=True, slots=True)
class BootstrapSettings:
    """How intervals are computed. Percentile bootstrap: with all units alike the interval has no width."""

    confidence: float = 0.95
    """Probability that the interval covers the estimated value."""
    resamples: int = 2000
    """Resamples that the interval is computed from."""
    seed: int = 0
    """Seed of the resamples."""


DEFAULT = BootstrapSettings()


def mean_interval(
    values: Sequence[float] | FloatArray,
    units: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
    settings: BootstrapSettings = DEFAULT,
) -> Interval:
    """Unweighted mean over the strata of the mean of `values` (n,) in each, with a bootstrap interval.

    units: n labels; values of one unit (the images of one prompt) are resampled together; each its own if None.
    strata: n labels (tasks); one stratum if None. ValueError when there are no values or the lengths differ.
    """
    value = np.asarray(values, dtype=np.float64)
    unit = list(range(len(value))) if units is None else list(units)
    stratum = [None] * len(value) if strata is None else list(strata)
    if not len(value) or not len(value) == len(unit) == len(stratum):
        lengths = f"{len(value)} values, {len(unit)} units, {len(stratum)} strata"
        raise ValueError(f"need as many units and strata as values, and at least one: got {lengths}")
    totals: dict[Hashable, dict[Hashable, list[float]]] = {}
    for number, label, group in zip(value.tolist(), unit, stratum, strict=True):
        totals.setdefault(group, {}).setdefault(label, []).append(number)
    rng = np.random.default_rng(settings.seed)
    estimates, draws = [], []
    for members in totals.values():
        sums = np.array([sum(numbers) for numbers in members.values()])
        counts = np.array([len(numbers) for numbers in members.values()])
        picked = rng.integers(len(sums), size=(settings.resamples, len(sums)))
        estimates.append(sums.sum() / counts.sum())
        draws.append(sums[picked].sum(axis=1) / counts[picked].sum(axis=1))
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(np.mean(draws, axis=0), [tail, 1 - tail])
    return Interval(float(np.mean(estimates)), float(low), float(high))


def difference_interval(
    first: Sequence[float] | FloatArray,
    second: Sequence[float] | FloatArray,
    units: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
    settings: BootstrapSettings = DEFAULT,
) -> Interval:
    """Paired interval of mean(first) - mean(second); entry i of both belongs to the same prompt and noise."""
    if len(first) != len(second):
        raise ValueError(f"paired samples must have the same length, got {len(first)} and {len(second)}")
    return mean_interval(np.asarray(first, np.float64) - np.asarray(second, np.float64), units, strata, settings)
