"""A loss of one's own: pictures with less noise between neighbouring pixels."""

import torch
from torch import Tensor

from hyperbagel.losses.base import LossTerm, Step


class TotalVariation(LossTerm):
    """Mean absolute difference of neighbouring pixels of the student's estimate, decoded.

    Args:
        weight: factor in the student's loss.
    """

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__("total_variation", weight)

    def forward(self, step: Step) -> Tensor:
        """The unweighted loss; `step.pixels` are (3, H, W) each and carry the graph to the student."""
        losses = [(x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()) for x in step.pixels]
        return torch.stack(losses).mean()
