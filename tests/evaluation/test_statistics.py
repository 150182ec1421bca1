"""Intervals: coverage on data with a known mean, clusters, strata, pairs."""

from __future__ import annotations

import numpy as np
import pytest

from hyperbagel.evaluation.statistics import BootstrapSettings, difference_interval, mean_interval

FEW = BootstrapSettings(resamples=400)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        strata = ["a"] * 60 + ["b"] * 40
        values = np.concatenate([rng.random(60) < 0.3, rng.random(40) < 0.8]).astype(float)
        interval = mean_interval(values, strata=strata, settings=FEW)
        hits += interval.low <= 0.55 <= interval.high
    assert 0.90 <= hits / 200 <= 0.99


def test_strata_count_equally_whatever_their_size() -> None:
    interval = mean_interval([1, 1, 1, 1, 0], strata=[0, 0, 0, 0, 1])
    assert (interval.estimate, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_values_of_one_unit_move_together() -> None:
    values = np.repeat(np.arange(20) % 2, 4)
    clustered = mean_interval(values, units=np.repeat(np.arange(20), 4).tolist())
    independent = mean_interval(values)
    assert clustered.estimate == independent.estimate
    assert clustered.high - clustered.low > 1.7 * (independent.high - independent.low)


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(0)
    shared = rng.random(100)
    paired = difference_interval(shared + 0.02, shared)
    assert (paired.low, paired.high) == pytest.approx((0.02, 0.02))
    noise = mean_interval(rng.normal(size=100))
    assert noise.low < 0 < noise.high


def test_more_confidence_is_wider_and_seeds_repeat() -> None:
    values = np.random.default_rng(1).random(50)
    narrow = mean_interval(values, settings=BootstrapSettings(confidence=0.5))
    wide = mean_interval(values, settings=BootstrapSettings(confidence=0.99))
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high
    assert mean_interval(values) == mean_interval(values)


def test_bad_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
    with pytest.raises(ValueError, match="2 values, 1 units"):
        mean_interval([1, 2], units=[0])
    with pytest.raises(ValueError, match="same length"):
        difference_interval([1], [1, 2])
