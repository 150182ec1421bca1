"""The flow-matching loss: which tokens count, and how much."""

from __future__ import annotations

import torch

from hyperbagel.losses.flow_matching import flow_matching_loss, squared_velocity_error


def test_every_generated_token_counts_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    velocity, x_0, noise = torch.randn(3, 2, 5, 4, generator=generator)
    generated = torch.tensor([[True, True, True, False, False], [False, False, True, False, False]])
    squared = squared_velocity_error(velocity, x_0, noise)
    torch.testing.assert_close(squared, (velocity - (noise - x_0)) ** 2)
    torch.testing.assert_close(flow_matching_loss(squared, generated), squared[generated].mean())
    torch.testing.assert_close(
        flow_matching_loss(squared, generated, count=torch.tensor(8)), squared[generated].mean() / 2
    )
    assert flow_matching_loss(squared, torch.zeros_like(generated)) == 0


def test_exact_velocity_has_no_loss() -> None:
    x_0, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert squared_velocity_error(noise - x_0, x_0, noise).max() == 0
