"""Adversarial losses on logits of shape (B, heads): every image and every head counts the same."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Objective = Literal["hinge", "non_saturating"]


def critic_loss(real: Tensor, fake: Tensor, objective: Objective = "hinge") -> Tensor:
    """What the critic minimises.

    hinge: mean ReLU(1 - real) + mean ReLU(1 + fake); non_saturating: mean softplus(-real) + mean softplus(fake).
    """
    real, fake = real.float(), fake.float()
    if objective == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor, objective: Objective = "hinge") -> Tensor:
    """What the generator minimises: -mean fake (hinge), or mean softplus(-fake) (non_saturating)."""
    fake = fake.float()
    return -fake.mean() if objective == "hinge" else F.softplus(-fake).mean()


def approximate_r1(real: Tensor, perturbed: Tensor) -> Tensor:
    """Approximate R1 penalty (arXiv 2501.08316): mean (D(x) - D(x + sigma e))^2 over real samples, free of the
    second-order gradients that R1 needs. The caller divides by sigma^2 if it wants the penalty's scale to be that of
    R1.
    """
    return (real.float() - perturbed.float()).square().mean()
