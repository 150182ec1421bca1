"""The stages' own loss terms: the formulas of this folder, read from a `Step`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from hyperbagel.losses.adversarial import Objective, approximate_r1, critic_loss, generator_loss
from hyperbagel.losses.distribution_matching import dmd_gradient, dmd_loss
from hyperbagel.losses.reduction import mean_squared_error, regression_error
from hyperbagel.losses.term import CriticLogits, LossTerm, Step, Update

_Value = TypeVar("_Value")


class MeanSquaredError(LossTerm):
    """`output` against `target`: CFG distillation, the fake branch, reward tuning, and TSCD by distance."""

    def __init__(self, name: str = "mse", weight: float = 1.0, update: Update = "student") -> None:
        super().__init__(name, weight, update)

    def forward(self, step: Step) -> Tensor:
        """Mean squared error over the images' tokens."""
        return mean_squared_error(step.output, _present(step.target, self, "target"), step.grid.valid)


class Regression(LossTerm):
    """`output` against `target`: ADP's pairs.

    Args:
        name: of the term, in logs.
        weight: of the term in the sum.
        scale: errors from which on a target counts little; None: all count.
    """

    def __init__(self, name: str = "regression", weight: float = 1.0, scale: float | None = None) -> None:
        super().__init__(name, weight)
        self.scale = scale

    def forward(self, step: Step) -> Tensor:
        """Cauchy loss over the images' tokens, or their mean squared error."""
        return regression_error(step.output, _present(step.target, self, "target"), self.scale, step.compared)


class DistributionMatching(LossTerm):
    """DMD's gradient on the student's estimate of x_0."""

    def __init__(self, name: str = "dmd", weight: float = 1.0, sources: Sequence[str] | None = None) -> None:
        super().__init__(name, weight, sources=sources)

    def forward(self, step: Step) -> Tensor:
        """The loss whose gradient is DMD's direction."""
        real, fake = _present(step.real_x0, self, "real_x0"), _present(step.fake_x0, self, "fake_x0")
        return dmd_loss(step.output, dmd_gradient(step.output, real, fake, step.grid.valid), step.grid.valid)


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
        """High when the critic takes generated samples for real ones."""
        logits = _logits(step, self, self.critic)
        loss = critic_loss(_present(logits.real, self, "real logits"), logits.fake, self.objective)
        if logits.perturbed is not None and logits.real is not None and self.r1_weight:
            loss = loss + self.r1_weight * approximate_r1(logits.real, logits.perturbed)
        return loss


def _present(value: _Value | None, term: LossTerm, what: str) -> _Value:
    if value is None:
        raise ValueError(f"loss term {term.name!r} needs {what}, which this stage's {term.update} updates do not have")
    return value


def _logits(step: Step, term: LossTerm, critic: str) -> CriticLogits:
    return _present(step.logits.get(critic), term, f"logits of a critic {critic!r}")
