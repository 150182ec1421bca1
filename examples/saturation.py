"""A reward of one's own: colourful pictures, unless the prompt asks for grey."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperbagel.rewards.base import Reward


class Saturation(Reward):
    """Mean distance of a pixel's strongest and weakest channel, 0 to about 2; its negative for prompts with "gray".

    Args:
        scale: factor of the reward.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def score(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """Rewards (B,) of pictures (3, H, W), with gradient."""
        spread = torch.stack([image.amax(0).sub(image.amin(0)).mean() for image in images])
        sign = torch.tensor([-1.0 if "gray" in prompt else 1.0 for prompt in prompts], device=spread.device)
        return self.scale * sign * spread
