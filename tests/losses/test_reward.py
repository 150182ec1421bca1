"""The loss of reward feedback."""

from __future__ import annotations

import torch

from hyperbagel.losses.reward import reward_feedback_loss


def test_reward_feedback_stops_at_the_threshold() -> None:
    reward = torch.tensor([4.0, 7.0, 6.0], requires_grad=True)
    loss = reward_feedback_loss(reward, 6.0)
    loss.backward()
    assert loss == 2 / 3
    assert reward.grad is not None and torch.equal(reward.grad, torch.tensor([-1 / 3, 0.0, 0.0]))
