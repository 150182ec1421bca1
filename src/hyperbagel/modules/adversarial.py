"""What stages with critics share: the settings of the adversarial game."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbagel.losses.adversarial import Objective


@dataclass(frozen=True, kw_only=True)
class AdversarialSettings:
    """Settings of an adversarial game."""

    objective: Objective = "hinge"
    """Objective of the game."""
    student_every: int = 1
    """Batches per update of the student; on the others only critics train."""
    r1_weight: float = 0.0
    """Weight of the approximate R1 penalty of the latent critic, 0 for none."""
    r1_sigma: float = 0.01
    """Standard deviation of the noise of the approximate R1 penalty."""

    def __post_init__(self) -> None:
        if self.student_every < 1:
            raise ValueError(f"student_every is {self.student_every}: the student needs a turn, give 1 or more")

    def perturbed(self, real: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Real latents (B, n, C) with a little noise, for the approximate R1 penalty; nothing when it has no weight."""
        if not self.r1_weight:
            return ()
        return (real + self.r1_sigma * torch.randn(real.shape, generator=generator).to(real),)
