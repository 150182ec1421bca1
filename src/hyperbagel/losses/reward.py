"""Reward feedback learning (ImageReward's ReFL, arXiv 2304.05977)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def reward_feedback_loss(reward: Tensor, threshold: float) -> Tensor:
    """ReFL: mean ReLU(threshold - r) over images, (B,) -> scalar. Images above the threshold give no gradient."""
    return F.relu(threshold - reward.float()).mean()
