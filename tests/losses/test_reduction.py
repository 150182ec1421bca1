"""Means over tokens of padded images."""

from __future__ import annotations

import torch

from hyperbagel.losses.reduction import mean_per_image, mean_squared_error

VALUES = torch.tensor([[[1.0, 3.0], [5.0, 7.0]], [[2.0, 4.0], [100.0, 100.0]]])
VALID = torch.tensor([[True, True], [True, False]])


def test_padding_does_not_count() -> None:
    assert mean_per_image(VALUES, VALID).tolist() == [4.0, 3.0]
    assert mean_per_image(VALUES).tolist() == [4.0, 51.5]


def test_every_image_counts_the_same_whatever_its_size() -> None:
    target = torch.zeros_like(VALUES)
    # (1 + 9 + 25 + 49) / 4 = 21 and (4 + 16) / 2 = 10
    assert mean_squared_error(VALUES, target, VALID) == (21 + 10) / 2


def test_error_is_computed_in_float32() -> None:
    low = torch.full((1, 1, 1), 1.0, dtype=torch.bfloat16)
    assert mean_squared_error(low, torch.full((1, 1, 1), 1.001)) > 0
