"""The adversarial game on logits of shape (B, heads), of which every image and every head counts the same: its losses,
and the terms of both players."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.losses.base import CriticLogits, LossTerm, Step

Objective = Literal["hinge", "non_saturating"]


def critic_loss(real: Tensor, fake: Tensor, objective: Objective = "hinge") -> Tensor:
    """What the critic minimises.

    hinge: mean ReLU(1 - real) + mean ReLU(1 + fake); non_saturating: mean softplus(-real) + mean softplus(fake).

    Examples:
        >>> critic_loss(real=torch.tensor([[2.0]]), fake=torch.tensor([[0.0]]))
        tensor(1.)
    """
    real, fake = real.float(), fake.float()
    if objective == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor, objective: Objective = "hinge") -> Tensor:
    """What the generator minimises: -mean fake (hinge), or mean softplus(-fake) (non_saturating).

    Examples:
        >>> generator_loss(torch.tensor([[2.0]]))
        tensor(-2.)
    """
    fake = fake.float()
    return -fake.mean() if objective == "hinge" else F.softplus(-fake).mean()


def approximate_r1(real: Tensor, perturbed: Tensor) -> Tensor:
    """Approximate R1 penalty (arXiv 2501.08316): mean (D(x) - D(x + sigma e))^2 over real samples, free of the
    second-order gradients that R1 needs. The caller divides by sigma^2 if it wants the penalty's scale to be that of
    R1.

    Examples:
        >>> approximate_r1(torch.tensor([[1.0]]), torch.tensor([[3.0]]))
        tensor(4.)
    """
    return (real.float() - perturbed.float()).square().mean()


class Adversarial(LossTerm):
    """The generator's loss against one critic.

    Args:
        critic: its name in the stage.
        objective: of the adversarial game.
        weight: of the term in the sum.
    """

    def __init__(self, critic: str, objective: Objective = "hinge", weight: float = 1.0) -> None:
        super().__init__(f"adversarial_{critic}", weight)
        self.critic, self.objective = critic, objective

    def forward(self, step: Step) -> Tensor:
        """High when the critic tells the student's samples from real ones."""
        return generator_loss(_logits(step, self, self.critic).fake, self.objective)


class Discrimination(LossTerm):
    """The loss of one critic.

    Args:
        critic: its name in the stage.
        objective: of the adversarial game.
        weight: of the term in the sum.
        r1_weight: of the approximate R1 penalty, 0 for none.
    """

    def __init__(
        self, critic: str, objective: Objective = "hinge", weight: float = 1.0, r1_weight: float = 0.0
    ) -> None:
        super().__init__(f"critic_{critic}", weight, "critic")
        self.critic, self.objective, self.r1_weight = critic, objective, r1_weight

    def forward(self, step: Step) -> Tensor:
        """High when the critic takes generated samples for real ones.

        Logs what it tells apart before it learns from the batch: `critic/<name>/auc` of all pairs of a real and a
        generated sample, `paired` of those that belong together; 0.5 is chance.
        """
        logits = _logits(step, self, self.critic)
        real, fake = self.needed(logits.real, "real logits"), logits.fake
        self.metrics = {f"critic/{self.critic}/{name}": value for name, value in told_apart(real, fake).items()}
        loss = critic_loss(real, fake, self.objective)
        if logits.perturbed is not None and self.r1_weight:
            loss = loss + self.r1_weight * approximate_r1(real, logits.perturbed)
        return loss


@torch.no_grad()
def told_apart(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """How often the mean logit of a real sample is above that of a generated one. real, fake: (B, heads).

    auc: of all B x B pairs; paired: of sample i and sample i. Equal ones count half.

    Examples:
        >>> told_apart(real=torch.tensor([[1.0], [3.0]]), fake=torch.tensor([[0.0], [2.0]]))
        {'auc': tensor(0.7500), 'paired': tensor(1.)}
    """
    gap = real.float().mean(1)[:, None] - fake.float().mean(1)
    won = (gap.sign() + 1) / 2
    return {"auc": won.mean(), "paired": won.diagonal().mean()}


def _logits(step: Step, term: LossTerm, critic: str) -> CriticLogits:
    return term.needed(step.logits.get(critic), f"logits of a critic {critic!r}")
