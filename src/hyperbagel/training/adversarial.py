"""The adversarial game of stages with a latent critic."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hyperbagel.critics.latent import CriticSettings, LatentCritic
from hyperbagel.flow.randomness import normal
from hyperbagel.losses.adversarial import Adversarial, Discrimination, Objective
from hyperbagel.losses.base import CriticLogits
from hyperbagel.training.distillation import DistillationStage
from hyperbagel.training.episode import Episode
from hyperbagel.training.memory import DocumentCost
from hyperbagel.training.networks import Training


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
    heads: CriticSettings = CriticSettings()
    """Heads of the critics."""

    def __post_init__(self) -> None:
        if self.student_every < 1:
            raise ValueError(f"student_every is {self.student_every}: the student needs a turn, give 1 or more")

    def student_turn(self, batches_seen: int) -> bool:
        """Whether the student has an update on this batch."""
        return batches_seen % self.student_every == 0


class AdversarialGame:
    """A latent critic of a stage, which starts as the teacher, and the two players' loss terms.

    Args:
        stage: gets the network `critic` and the terms.
        training: how the critic is trained.
        settings: of the game.
        weight: of the student's term.

    Examples:
        >>> from hyperbagel.modules import TSCD
        >>> TSCD(model=folder).game.critic.layers
        (1, 2)
    """

    def __init__(
        self, stage: DistillationStage, training: Training, settings: AdversarialSettings, weight: float
    ) -> None:
        self.settings, self.model = settings, stage.model
        self.critic = LatentCritic(stage.branch_like_teacher(training), stage.model.config, settings.heads)
        stage.critic = self.critic
        stage.add_network("critic", training, "critic")
        stage.add_loss(Discrimination("latent", settings.objective, r1_weight=settings.r1_weight))
        stage.add_loss(Adversarial("latent", settings.objective, weight))

    def compared(self, episode: Episode, fake: Tensor, real: Tensor, t: Tensor) -> CriticLogits:
        """The critic's logits in its own update. fake, real: (B, n, C) latents at noise level t (B,)."""
        latents: tuple[Tensor, ...] = (fake.detach(), real)
        if self.settings.r1_weight:
            noise = normal(real.shape, episode.generator).to(real)
            latents += (real + self.settings.r1_sigma * noise,)
        return CriticLogits(*self.critic.compare(self.model, latents, t, episode.judged))

    def seen(self, episode: Episode, fake: Tensor, t: Tensor) -> CriticLogits:
        """The critic's logits in the student's update."""
        return CriticLogits(self.critic(self.model, fake, t, episode.judged))

    def memory(self, cost: DocumentCost) -> dict[str, int]:
        """Of the critic: fake, real, and real with noise in one pass."""
        judged = 3 if self.settings.r1_weight else 2
        return {"activations: critic": judged * cost.graph, "key-value caches": judged * cost.cache}
