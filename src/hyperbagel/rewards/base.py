"""The interface of rewards, which score pictures against prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from torch import Tensor, nn

from hyperbagel.bagel.finite import require_finite
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.tokenizer import Tokenizer


def scored(reward: Reward, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
    """`reward.score`, whose rewards (B,) have to be numbers: NotFiniteError names the reward where they are not.

    On a GPU, where a look would wait for it, the losses that follow tell (see `Watch`).
    """
    rewards = reward.score(images, prompts)
    if rewards.is_cpu:
        require_finite(rewards.detach(), f"rewards by {type(reward).__name__}")
    return rewards


class Reward(nn.Module, ABC):
    """Scores pictures against prompts, differentiably; frozen.

    The scale is the reward's own, so a threshold (see ReFL) belongs to one reward.

    Examples:
        >>> class Brightness(Reward):
        ...     def score(self, images, prompts):
        ...         return torch.stack([image.mean() for image in images])
        ...
        >>> Brightness().score([torch.ones(3, 8, 8)], ["a white square"])
        tensor([1.])
    """

    def attach(self, model: Bagel, tokenizer: Tokenizer) -> None:
        """Called once by a stage, with the model that draws the pictures."""

    @abstractmethod
    def score(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """Rewards (B,), higher is better, of pictures (3, H, W) in about [-1, 1], of any sizes."""

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: the reward is frozen."""
        return super().train(False)
