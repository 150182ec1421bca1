"""What stages with critics share: the settings of the adversarial game."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbagel.losses.adversarial import Objective


@dataclass(frozen=True, kw_only=True)
class AdversarialSettings:
    """Settings of an adversarial game.

    objective: of the game; student_every: batches on which only critics train come between the student's; r1_weight,
    r1_sigma: approximate R1 penalty of the latent critic and its noise, 0 for none.
    """

    objective: Objective = "hinge"
    student_every: int = 1
    r1_weight: float = 0.0
    r1_sigma: float = 0.01

    def __post_init__(self) -> None:
        if self.student_every < 1:
            raise ValueError(f"student_every is {self.student_every}: the student needs a turn, give 1 or more")

    def perturbed(self, real: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Real latents (B, n, C) with a little noise, for the approximate R1 penalty; nothing when it has no weight."""
        if not self.r1_weight:
            return ()
        return (real + self.r1_sigma * torch.randn(real.shape, generator=generator).to(real),)
