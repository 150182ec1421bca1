"""Loss terms of draft heads, which compare the draft's distribution with the target's, row by row.

A term sees logits over the draft's vocabulary. With a reduced vocabulary the target's logits are restricted to it
before the softmax, and rows whose most likely token lies outside are not among those given.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.losses.base import WeightedTerm


@dataclass(frozen=True)
class DraftStep:
    """Rows of one unroll step. number: of the step, from 0; draft, target: logits (R, V'), in float32."""

    number: int
    draft: Tensor
    target: Tensor


class DraftLoss(WeightedTerm):
    """A term of a draft head's loss; a loss of each row is all that a new one has to say."""

    @abstractmethod
    def rows(self, step: DraftStep) -> Tensor:
        """The loss of each row, (R,)."""

    def forward(self, step: DraftStep) -> Tensor:
        """The mean over rows, which all count."""
        return self.rows(step).mean()


class KLDivergence(DraftLoss):
    """KL(p_target || p_draft), the main term.

    Examples:
        >>> from hyperbagel.draft.losses import DraftStep
        >>> logits = torch.tensor([[0.0, 1.0]])
        >>> float(KLDivergence()(DraftStep(0, draft=logits, target=logits)))
        0.0
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__("kl", weight)

    def rows(self, step: DraftStep) -> Tensor:
        """(R,)."""
        log_p, log_q = step.target.log_softmax(-1), step.draft.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)


class TargetCrossEntropy(DraftLoss):
    """Cross-entropy with the target's most likely token, which the paper adds with weight 0.1.

    Examples:
        >>> from hyperbagel.draft.losses import DraftStep
        >>> step = DraftStep(0, draft=torch.tensor([[0.0, 0.0]]), target=torch.tensor([[0.0, 1.0]]))
        >>> round(float(TargetCrossEntropy()(step)), 4)  # log 2
        0.6931
    """

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__("ce", weight)

    def rows(self, step: DraftStep) -> Tensor:
        """(R,)."""
        return F.cross_entropy(step.draft, step.target.argmax(-1), reduction="none")


def acceptance_rate(step: DraftStep) -> Tensor:
    """Probability (R,) that speculative sampling accepts a draft token: sum of min(p, q)."""
    return torch.minimum(step.target.softmax(-1), step.draft.softmax(-1)).sum(-1)


class TotalVariation(DraftLoss):
    """1 - acceptance rate. Its gradients vanish for a bad draft: best beside another term."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__("total_variation", weight)

    def rows(self, step: DraftStep) -> Tensor:
        """(R,)."""
        return 1 - acceptance_rate(step)


class AcceptanceLikelihood(DraftLoss):
    """-log acceptance rate (LK loss, arXiv 2602.23881): aims at what decoding gains, at any quality of the draft."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__("lk", weight)

    def rows(self, step: DraftStep) -> Tensor:
        """(R,)."""
        return -acceptance_rate(step).clamp(min=1e-8).log()
