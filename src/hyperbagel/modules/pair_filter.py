"""Which pairs are worth learning from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.modules.batches import PreparedBatch
from hyperbagel.modules.reward_term import reward_prompts
from hyperbagel.rewards.base import Reward


class PairFilter(nn.Module):
    """Keeps the pictures of a branch of several steps that a reward finds right: those that it got wrong teach nothing.

    Args:
        reward: what scores the pictures.
        threshold: lowest reward of a picture that is kept.
        prompt_key: entry of a document's meta that holds the text to score against; without it, the last text before
            the image.
        sources: names of the data sources whose pictures are judged; None: all.
    """

    def __init__(
        self,
        reward: Reward,
        threshold: float,
        prompt_key: str = "reward_prompt",
        sources: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.reward = reward.requires_grad_(False)
        self.threshold, self.prompt_key, self.sources = threshold, prompt_key, sources
        self._tokenizer: Tokenizer | None = None

    def attach(self, model: Bagel, folder: str) -> None:
        """Give the reward the stage's model, and take the tokenizer of its folder to read prompts with."""
        self._tokenizer = Tokenizer.from_pretrained(folder)
        self.reward.attach(model, self._tokenizer)

    @torch.no_grad()
    def forward(self, model: Bagel, prepared: PreparedBatch, x_0: Tensor) -> Tensor:
        """Whether each picture of latents x_0 (B, n, C) is kept: (B,) bool. ValueError for a document without a text."""
        if self.sources is not None and prepared.batch.source not in self.sources:
            return torch.ones(len(prepared), dtype=torch.bool, device=x_0.device)
        prompts = reward_prompts(prepared.batch, self._tokenizer, self.prompt_key)
        return self.reward.score(model.decode_latents(x_0, prepared.grid), prompts) >= self.threshold
