"""A reward as a loss term, for the ReFL stage and for any other stage."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch, ImageSegment, TextSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.losses.reward import reward_feedback_loss
from hyperbagel.losses.term import LossTerm, Step
from hyperbagel.rewards.base import Reward, scored

PROMPT_KEY = "reward_prompt"
"""The entry of a document's meta that says what its picture is to show, where the texts before it do not."""


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


def reward_prompts(batch: DocumentBatch, tokenizer: Tokenizer | None, prompt_key: str = PROMPT_KEY) -> list[str]:
    """What each document's picture is to show: the meta's `prompt_key`, or for the default one the last text before it.

    Raises ValueError for a document without such a text.
    """
    prompts = []
    for key, meta, document in zip(batch.keys, batch.metas, batch.documents, strict=True):
        if prompt_key in meta:
            prompts.append(str(meta[prompt_key]))
            continue
        if prompt_key != PROMPT_KEY:
            raise ValueError(
                f"document {key} of source {batch.source!r} has no {prompt_key!r} in its meta to score its picture "
                f"against: write one, name its sources only where all have one, or set `prompt_key`"
            )
        last = max(i for i, s in enumerate(document) if isinstance(s, ImageSegment) and s.loss)
        texts = [s.ids for s in document[:last] if isinstance(s, TextSegment)]
        if not texts or tokenizer is None:
            raise ValueError(
                f"document {key} of source {batch.source!r} has no text to score its picture against: "
                f"train without dropping texts, or give its meta a {prompt_key!r}"
            )
        prompts.append(tokenizer.decode(texts[-1]))
    return prompts
