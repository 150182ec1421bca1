"""Stage 5: reward feedback learning (ReFL) of the 1-NFE model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.flow.schedule import predict_x0
from hyperbagel.losses.reward import RewardTerm
from hyperbagel.rewards.base import Reward
from hyperbagel.training.distillation import DistillationSettings, DistillationStage
from hyperbagel.training.memory import DocumentCost
from hyperbagel.training.networks import Training


@dataclass(frozen=True, kw_only=True)
class ReFLMethod:
    """Settings of ReFL."""

    threshold: float = 6.0
    """Rewards above it give no gradient; 6.0 in the paper, for HPSv3. Each reward needs its own."""
    sources: tuple[str, ...] | None = None
    """Names of the data sources whose pictures the reward scores, where other loss terms teach the rest; None: all."""


class ReFL(DistillationStage):
    """Stage 5: the one-step student is tuned by a reward on its decoded pictures.

    Args:
        model: folder of the original model.
        init_from: the branch of stage 4.
        reward: what scores the pictures.
        method: settings of the method.
        student: how the student is trained.
        settings: what all distillation stages have in common; the student samples in one step.

    Examples:
        >>> from hyperbagel.rewards.bagel import BagelReward
        >>> stage = ReFL(model=folder, reward=BagelReward())
        >>> stage.nfe, stage.sampler.steps
        (1, 1)
    """

    asks_teacher = False

    def __init__(
        self,
        *,
        model: str,
        init_from: str | None = None,
        reward: Reward,
        method: ReFLMethod = ReFLMethod(),
        student: Training = Training(),
        settings: DistillationSettings = DistillationSettings(),
    ) -> None:
        super().__init__(model, init_from, student, settings.in_one_step())
        self.method = method
        self.add_loss(RewardTerm(reward, method.threshold, sources=method.sources))

    def memory(self, cost: DocumentCost) -> dict[str, int]:
        """That of the student and of the decoder."""
        return super().memory(cost) | {"activations: decoder": cost.decoder}

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """One picture of each document in one step from pure noise, and the reward's gradient through the decoder."""
        episode = self.begin(batch)
        noise, t = episode.noise, torch.ones(len(episode), device=self.device)
        with self.timed("student"):
            velocity = episode.velocity(self.student)(noise, t, torch.zeros_like(t))
            x0 = predict_x0(noise, velocity.float(), t[:, None, None])
            self.update("student", self.total(episode.step(x_t=noise, t=t, velocity=velocity, x0=x0), "student"))
