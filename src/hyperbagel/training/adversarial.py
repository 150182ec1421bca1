"""The adversarial game of stages with a latent critic."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from hyperbagel.critics.latent import CriticSettings, LatentCritic, Start
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
    critic_first: int = 0
    """Batches before the first update of the student, on which only critics train: what they then tell apart
    (`critic/<name>/auc`) says whether there is anything to learn from them."""
    r1_weight: float = 0.0
    """Weight of the approximate R1 penalty of the latent critic, 0 for none."""
    r1_sigma: float = 0.01
    """Standard deviation of the noise of the approximate R1 penalty."""
    heads: CriticSettings = CriticSettings()
    """Heads of the critics."""

    def __post_init__(self) -> None:
        if self.student_every < 1:
            raise ValueError(f"student_every is {self.student_every}: the student needs a turn, give 1 or more")
        if self.critic_first < 0:
            raise ValueError(f"critic_first is {self.critic_first}: give a number of batches, 0 for none")

    def student_turn(self, batches_seen: int) -> bool:
        """Whether the student has an update on this batch."""
        return batches_seen > self.critic_first and batches_seen % self.student_every == 0


class AdversarialGame:
    """A latent critic of a stage, which starts as the teacher, and the two players' loss terms.

    Args:
        stage: gets the network `critic` and the terms.
        training: how the critic is trained.
        settings: of the game.
        weight: of the student's term.
        sees_start: whether the critic is shown where jumps began.

    Examples:
        >>> from hyperbagel.modules import TSCD
        >>> TSCD(model=folder).game.critic.layers
        (1, 2)
    """

    def __init__(
        self,
        stage: DistillationStage,
        training: Training,
        settings: AdversarialSettings,
        weight: float,
        sees_start: bool = False,
    ) -> None:
        self.settings, self.model = settings, stage.model
        backbone = stage.branch_like_teacher(training)
        self.critic = LatentCritic(backbone, stage.model.config, settings.heads, sees_start)
        stage.critic = self.critic
        stage.add_network("critic", training, "critic")
        stage.add_loss(Discrimination("latent", settings.objective, r1_weight=settings.r1_weight))
        stage.add_loss(Adversarial("latent", settings.objective, weight))

    def compared(
        self, episode: Episode, fake: Tensor, real: Tensor, t: Tensor, start: Start | None = None
    ) -> CriticLogits:
        """The critic's logits in its own update. fake, real: (B, n, C) latents at noise level t (B,); start: where the
        jumps to them began."""
        latents: tuple[Tensor, ...] = (fake.detach(), real)
        if self.settings.r1_weight:
            noise = normal(real.shape, episode.generator).to(real)
            latents += (real + self.settings.r1_sigma * noise,)
        return CriticLogits(*self.critic.compare(self.model, latents, t, replace(episode.judged, start=start)))

    def seen(self, episode: Episode, fake: Tensor, t: Tensor, start: Start | None = None) -> CriticLogits:
        """The critic's logits in the student's update."""
        return CriticLogits(self.critic(self.model, fake, t, replace(episode.judged, start=start)))

    def memory(self, cost: DocumentCost) -> dict[str, int]:
        """Of the critic: fake, real, and real with noise in one pass."""
        judged = 3 if self.settings.r1_weight else 2
        return {"activations: critic": judged * cost.graph, "key-value caches": judged * cost.cache}
