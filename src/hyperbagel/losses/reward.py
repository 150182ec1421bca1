"""Reward feedback learning (ImageReward's ReFL, arXiv 2304.05977): a reward's gradient through decoded pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.losses.base import LossTerm, Step
from hyperbagel.rewards.base import Reward, scored
from hyperbagel.rewards.prompts import PROMPT_KEY, reward_prompts


def reward_feedback_loss(reward: Tensor, threshold: float) -> Tensor:
    """ReFL: mean ReLU(threshold - r) over images, (B,) -> scalar. Images above the threshold give no gradient.

    Examples:
        >>> reward_feedback_loss(torch.tensor([5.0, 8.0]), threshold=6.0)  # the second is above it
        tensor(0.5000)
    """
    return F.relu(threshold - reward.float()).mean()


class RewardTerm(LossTerm):
    """ReFL: mean ReLU(threshold - reward) of the decoded estimate of x_0. Logs the mean reward as `reward/<name>`.

    Args:
        reward: what scores the pictures.
        threshold: rewards above it give no gradient; 6.0 in the paper, for HPSv3. Each reward needs its own.
        prompt_key: entry of a document's meta that holds the text to score against; a document without the default one
            is scored against the last text before the image (for edits: the instruction).
        weight: factor in the student's loss.
        name: logged as `loss/<name>`.
        sources: names of the data sources whose pictures it scores; None: all.

    Examples:
        >>> from hyperbagel.rewards.bagel import BagelReward
        >>> term = RewardTerm(BagelReward(), threshold=1.0)
        >>> term.name, term.threshold
        ('refl', 1.0)
    """

    unsaved = ("reward",)

    def __init__(
        self,
        reward: Reward,
        threshold: float = 6.0,
        prompt_key: str = PROMPT_KEY,
        weight: float = 1.0,
        name: str = "refl",
        sources: Sequence[str] | None = None,
    ) -> None:
        super().__init__(name, weight, sources=sources)
        self.reward = reward.requires_grad_(False)
        self.threshold, self.prompt_key = threshold, prompt_key
        self._tokenizer: Tokenizer | None = None

    def attach(self, model: Bagel, folder: str) -> None:
        """Give the reward the stage's model, and take its tokenizer to read prompts with."""
        self._tokenizer = Tokenizer.from_pretrained(folder)
        self.reward.attach(model, self._tokenizer)

    def forward(self, step: Step) -> Tensor:
        """The loss, from the rewards of the step's pictures."""
        rewards = scored(self.reward, step.pixels, self.prompts(step.batch))
        self.metrics = {f"reward/{self.name}": rewards.detach().mean()}
        return reward_feedback_loss(rewards, self.threshold)

    def prompts(self, batch: DocumentBatch) -> list[str]:
        """What each document's picture is to show. Raises ValueError for a document without any text."""
        return reward_prompts(batch, self._tokenizer, self.prompt_key)
