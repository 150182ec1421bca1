"""What the pictures of a group teach: who is better than its group, and where that leads."""

from __future__ import annotations

import torch

from hyperbagel.losses.advantage import group_advantages, group_covariance


def test_advantages_by_hand() -> None:
    """Two documents, three pictures of each; the second document's are equals."""
    rewards = torch.tensor([1.0, 5.0, 2.0, 5.0, 6.0, 5.0])
    # means 3 and 5; centred -2, -1, 3 and 0, 0, 0
    expected = torch.tensor([-2 / 3, 0.0, -1 / 3, 0.0, 1.0, 0.0])
    torch.testing.assert_close(group_advantages(rewards, 3), expected)
    assert group_advantages(torch.full((4,), 0.3), 2).tolist() == [0.0] * 4
    assert group_advantages(rewards.bfloat16(), 3).dtype == torch.float32


def test_covariance_by_hand() -> None:
    """Two pictures of two documents: only the first document's differ in reward, and their mean does not matter."""
    x_0 = torch.tensor([[[1.0, 2.0]], [[7.0, 7.0]], [[3.0, 2.0]], [[9.0, 9.0]]])
    advantages = torch.tensor([-1.0, 0.0, 1.0, 0.0])
    expected = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]]])
    torch.testing.assert_close(group_covariance(advantages, x_0, 2), expected)
    torch.testing.assert_close(group_covariance(advantages, x_0 + 5, 2), expected)


def test_pictures_move_to_where_the_reward_rises() -> None:
    """By a linear reward's gradient g through the pictures' own covariance: up, whatever else varies."""
    generator = torch.Generator().manual_seed(0)
    x_0, slope = torch.randn(512, 1, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.1]), torch.tensor([1.0, -1, 1])
    move = group_covariance(group_advantages((x_0 * slope).sum((1, 2)), 512), x_0, 512)[0, 0]
    assert (move * slope).sum() > 0 and move[0] > 0 > move[1] and abs(move[2]) < 0.05 * move[0]
