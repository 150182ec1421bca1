"""NFT's formulas: who is better than its group, and where the regression leads."""

from __future__ import annotations

import pytest
import torch

from hyperbagel.losses.negative_aware import group_advantages, negative_aware_loss


def test_advantages_by_hand() -> None:
    """Two documents, three pictures of each; the second document's are equals."""
    rewards = torch.tensor([1.0, 5.0, 2.0, 5.0, 6.0, 5.0])
    # means 3 and 5; centred -2, -1, 3 and 0, 0, 0
    expected = torch.tensor([-2 / 3, 0.0, -1 / 3, 0.0, 1.0, 0.0])
    torch.testing.assert_close(group_advantages(rewards, 3), expected)
    assert group_advantages(torch.full((4,), 0.3), 2).tolist() == [0.0] * 4
    assert group_advantages(rewards.bfloat16(), 3).dtype == torch.float32


def test_loss_by_hand() -> None:
    """v_old = 1, student 2, beta 2: v+ = 3 and v- = -1. Targets 4 and 0, r = 1 and 1/4; padding does not count."""
    behaviour, velocity = torch.ones(2, 2, 1), torch.full((2, 2, 1), 2.0)
    target = torch.tensor([[[4.0], [4.0]], [[0.0], [99.0]]])
    valid = torch.tensor([[True, True], [True, False]])
    loss = negative_aware_loss(velocity, behaviour, target, torch.tensor([1.0, -0.5]), 2.0, valid)
    # 1 * (3 - 4)^2, and 1/4 * (3 - 0)^2 + 3/4 * (-1 - 0)^2 = 3
    assert loss.item() == pytest.approx((1 + 3) / 2)


def test_minimum_is_the_covariance_of_advantage_and_velocity() -> None:
    """For one x_t from which several pictures come: v_old + mean(advantage (v - v_old)) / beta."""
    generator = torch.Generator().manual_seed(0)
    target, advantage = torch.randn(64, 1, 3, generator=generator), torch.rand(64, generator=generator) * 2 - 1
    behaviour = torch.randn(1, 1, 3, generator=generator)
    expected = behaviour + (advantage[:, None, None] * (target - behaviour)).mean(0) / 0.5
    velocity = expected.clone().requires_grad_()
    loss = negative_aware_loss(velocity.expand(64, 1, 3), behaviour.expand(64, 1, 3), target, advantage, 0.5)
    loss.backward()
    assert velocity.grad is not None
    torch.testing.assert_close(velocity.grad, torch.zeros_like(velocity), atol=1e-6, rtol=0)


def test_without_an_advantage_the_student_is_drawn_back() -> None:
    """Then the only minimum is the old velocity, wherever the picture lies."""
    velocity = torch.full((1, 1, 2), 3.0, requires_grad=True)
    negative_aware_loss(velocity, torch.ones(1, 1, 2), torch.full((1, 1, 2), 50.0), torch.zeros(1), 1.0).backward()
    assert velocity.grad is not None
    torch.testing.assert_close(velocity.grad, torch.full((1, 1, 2), 2.0))
