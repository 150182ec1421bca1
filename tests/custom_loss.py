"""A user's loss term, as a file of their own project would have it; test_configs.py adds it by YAML alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyperbagel.losses.base import LossTerm, Step


class LatentContrast(LossTerm):
    """How far the spread of the estimated latents is from a wanted one, with a learnt scale."""

    def __init__(self, spread: float = 1.0, weight: float = 1.0, name: str = "contrast") -> None:
        super().__init__(name, weight)
        self.spread = spread
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, step: Step) -> Tensor:
        deviation = step.x0_hat.float().std()
        self.metrics = {"contrast/spread": deviation.detach()}
        return (self.scale * deviation - self.spread).square()
