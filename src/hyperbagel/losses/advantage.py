"""What the pictures of a group teach: who is better than the group, and where that leads."""

from __future__ import annotations

from torch import Tensor

EPSILON = 1e-6


def group_advantages(rewards: Tensor, group: int) -> Tensor:
    """How much better than its group each picture is, in [-1, 1]: (reward - the group's mean) / the batch's largest.

    rewards: (group * B,), the pictures of document b at b, B + b, 2 B + b ... -> the same shape, float32. Every group's
    sum is 0, and a group of equals gets 0.

    Examples:
        >>> group_advantages(torch.tensor([1.0, 5.0, 3.0, 5.0]), group=2)  # two pictures of two documents
        tensor([-1.,  0.,  1.,  0.])
    """
    grouped = rewards.float().view(group, -1)
    centred = grouped - grouped.mean(0)
    return (centred / centred.abs().max().clamp(min=EPSILON)).flatten()


def group_covariance(advantages: Tensor, x_0: Tensor, group: int) -> Tensor:
    """Where a group's pictures get better: the covariance of advantage and picture, the same for the whole group.

    advantages: (group * B,), of sum 0 in each group; x_0: (group * B, n, C) -> (group * B, n, C), float32.

    Examples:
        >>> group_covariance(torch.tensor([-1.0, 1.0]), torch.tensor([[[1.0]], [[3.0]]]), group=2).flatten()
        tensor([1., 1.])
    """
    weighted = advantages[:, None, None] * x_0.float()
    return weighted.view(group, -1, *x_0.shape[1:]).mean(0).repeat(group, 1, 1)
