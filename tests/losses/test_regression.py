"""Means over tokens of padded images."""

from __future__ import annotations

import torch

from hyperbagel.losses.reduction import mean_per_image
from hyperbagel.losses.regression import cauchy_error, mean_squared_error

VALUES = torch.tensor([[[1.0, 3.0], [5.0, 7.0]], [[2.0, 4.0], [100.0, 100.0]]])
VALID = torch.tensor([[True, True], [True, False]])


def test_padding_does_not_count() -> None:
    assert mean_per_image(VALUES, VALID).tolist() == [4.0, 3.0]
    assert mean_per_image(VALUES).tolist() == [4.0, 51.5]


def test_every_image_counts_the_same_whatever_its_size() -> None:
    target = torch.zeros_like(VALUES)
    # (1 + 9 + 25 + 49) / 4 = 21 and (4 + 16) / 2 = 10
    assert mean_squared_error(VALUES, target, VALID) == (21 + 10) / 2


def test_cauchy_error_is_that_of_whole_tokens() -> None:
    target = torch.zeros_like(VALUES)
    # Tokens' mean squares (1 + 9) / 2 = 5 and (25 + 49) / 2 = 37; (4 + 16) / 2 = 10; at scale 2: 4 log(1 + e / 4)
    images = 4 * torch.tensor([(1 + 5 / 4) * (1 + 37 / 4), (1 + 10 / 4) ** 2]).log() / 2
    torch.testing.assert_close(cauchy_error(VALUES, target, 2.0, VALID), images.mean())


def test_cauchy_error_of_small_errors_is_the_mean_squared_error() -> None:
    near = VALUES + 1e-3
    torch.testing.assert_close(cauchy_error(near, VALUES, 1.0), mean_squared_error(near, VALUES), rtol=1e-5, atol=0)


def test_cauchy_error_chooses_where_a_squared_error_takes_the_mean() -> None:
    values = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    candidates = torch.linspace(0, 1, 101)
    errors = torch.stack([cauchy_error(c.expand(3, 1, 1), values, 0.1) for c in candidates])
    assert candidates[errors.argmin()] < 0.01


def test_error_is_computed_in_float32() -> None:
    low = torch.full((1, 1, 1), 1.0, dtype=torch.bfloat16)
    assert mean_squared_error(low, torch.full((1, 1, 1), 1.001)) > 0
