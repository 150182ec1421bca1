"""Which pairs are worth learning from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.modules.reward_term import PROMPT_KEY, reward_prompts
from hyperbagel.rewards.base import Reward, scored


class PairFilter(nn.Module):
    """Keeps the pictures of a branch of several steps that a reward finds right: those that it got wrong teach nothing.

    Args:
        reward: what scores the pictures.
        threshold: lowest reward of a picture that is kept.
        prompt_key: entry of a document's meta that holds the text to score against, as in `RewardTerm`.
        sources: names of the data sources whose pictures are judged; None: all.
    """

    def __init__(
        self,
        reward: Reward,
        threshold: float,
        prompt_key: str = PROMPT_KEY,
        sources: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.reward = reward.requires_grad_(False)
        self.threshold, self.prompt_key, self.sources = threshold, prompt_key, sources
        self._model: tuple[Bagel, ...] = ()  # in a tuple, so that it is not registered again
        self._tokenizer: Tokenizer | None = None

    def attach(self, model: Bagel, folder: str) -> None:
        """Take the stage's model, and the tokenizer of its folder to read prompts with; the reward gets both."""
        self._model, self._tokenizer = (model,), Tokenizer.from_pretrained(folder)
        self.reward.attach(model, self._tokenizer)

    @torch.no_grad()
    def forward(self, x_0: Tensor, grid: LatentGrid, batch: DocumentBatch) -> Tensor:
        """Whether each picture of latents x_0 (B, n, C) is kept, (B,) bool. ValueError for a document without text."""
        if self.sources is not None and batch.source not in self.sources:
            return torch.ones(len(batch), dtype=torch.bool, device=x_0.device)
        (model,) = self._model
        prompts = reward_prompts(batch, self._tokenizer, self.prompt_key)
        return scored(self.reward, model.decode_latents(x_0, grid), prompts) >= self.threshold


class PairFilters(nn.ModuleList):
    """Any number of filters, all of which must keep a picture."""

    def attach(self, model: Bagel, folder: str) -> None:
        """Attach each filter."""
        for one in self:
            assert isinstance(one, PairFilter)
            one.attach(model, folder)

    def forward(self, x_0: Tensor, grid: LatentGrid, batch: DocumentBatch) -> Tensor | None:
        """Which pictures of latents x_0 (B, n, C) are kept, (B,) bool; None without filters."""
        kept = [keeps(x_0, grid, batch) for keeps in self]
        return torch.stack(kept).all(0) if kept else None
