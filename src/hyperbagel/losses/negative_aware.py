"""Negative-aware fine-tuning (DiffusionNFT, arXiv 2509.16117): a reward's lesson as a regression."""

from __future__ import annotations

from torch import Tensor

from hyperbagel.losses.reduction import mean_per_image

EPSILON = 1e-6


def group_advantages(rewards: Tensor, group: int) -> Tensor:
    """How much better than its group each picture is, in [-1, 1]: (reward - the group's mean) / the batch's largest.

    rewards: (group * B,), the pictures of document b at b, B + b, 2 B + b ... -> the same shape, float32. Every group's
    sum is 0, and a group of equals gets 0. They are not clamped: the mean of what is left would not be 0, and would
    draw the student to the mean of its own noised pictures, wherever v_old is not that mean.
    """
    grouped = rewards.float().view(group, -1)
    centred = grouped - grouped.mean(0)
    return (centred / centred.abs().max().clamp(min=EPSILON)).flatten()


def negative_aware_loss(
    velocity: Tensor, behaviour: Tensor, target: Tensor, advantage: Tensor, beta: float, valid: Tensor | None = None
) -> Tensor:
    """r |v+ - v|^2 + (1 - r) |v- - v|^2 with r = (1 + advantage) / 2, mean over images, in float32.

    v+ = v_old + beta (v_student - v_old) and v- = v_old - beta (v_student - v_old): the student is drawn to what led
    to good pictures, and its mirror image about v_old to what led to bad ones. velocity, behaviour (v_old), target
    (v): (B, n, C); advantage: (B,) in [-1, 1]; valid: (B, n) bool or None -> scalar. Where v_old is the mean of v, the
    minimum is v_old + (the covariance of advantage and v) / beta.
    """
    behaviour, target = behaviour.float(), target.float()
    move = beta * (velocity.float() - behaviour)
    good = mean_per_image((behaviour + move - target).square(), valid)
    bad = mean_per_image((behaviour - move - target).square(), valid)
    share = (1 + advantage.float()) / 2
    return (share * good + (1 - share) * bad).mean()
