"""BAGEL's own understanding as a reward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperbagel.bagel.layout import IGNORED
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Segment, TextSegment, ViTSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.bagel.views import encoder_view
from hyperbagel.rewards.base import Reward


class BagelReward(Reward):
    """Log-odds of "yes" against "no" to a question on the picture, asked of the model's own understanding branch.

    The understanding branch is never trained, so the judge does not follow the student. The gradient reaches the pixels
    through the vision tower.

    Args:
        question: with `{prompt}` for what the picture should show.
        drop_prefixes: openings of prompts that do not belong into the question.
        answers: the two answers; their first tokens are compared.
        probability: score p(yes) of the two instead, between 0 and 1.
        model: folder of another BAGEL to ask; None asks the one that is trained.
    """

    def __init__(
        self,
        question: str = "Does this picture show {prompt}?",
        drop_prefixes: tuple[str, ...] = ("a photo of ",),
        answers: tuple[str, str] = ("yes", "no"),
        probability: bool = False,
        model: str | None = None,
    ) -> None:
        super().__init__()
        if "{prompt}" not in question:
            raise ValueError(f"the question {question!r} needs {{prompt}} for what the picture should show")
        self.question, self.drop_prefixes, self.answers = question, drop_prefixes, answers
        self.probability = probability
        self.judge: Bagel | None = None
        self._shared: tuple[Bagel, ...] = ()  # in a tuple, so that the stage's model is not registered again
        self._tokenizer: Tokenizer | None = None
        if model is not None:
            self.judge = Bagel.from_pretrained(model).requires_grad_(False)
            self._tokenizer = Tokenizer.from_pretrained(model)

    def attach(self, model: Bagel, tokenizer: Tokenizer) -> None:
        """Ask this model, unless another one was given."""
        if self.judge is None:
            self._shared, self._tokenizer = (model,), tokenizer

    def score(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """log p(yes) - log p(no), or p(yes), (B,). Raises RuntimeError before `attach`."""
        if self._tokenizer is None:
            raise RuntimeError("BagelReward has no model to ask: give it `model`, or use it in a stage")
        model = self.judge or self._shared[0]
        yes, no = (self._tokenizer.encode(answer)[:1] for answer in self.answers)
        documents: list[list[Segment]] = [
            [
                ViTSegment(encoder_view(image, model.config.vit_transform)),
                TextSegment(self._tokenizer.encode(self._question(prompt))),
                TextSegment(yes, loss=True),
            ]
            for image, prompt in zip(images, prompts, strict=True)
        ]
        layout = model.layout(documents)
        hidden = model.understanding.norm(model.run(layout).streams.und)
        # The first label of an answer stands where the answer begins: its next token is "yes" or "no".
        begins = layout.labels.ne(IGNORED).int().argmax(1)
        answer = hidden[torch.arange(len(images), device=hidden.device), begins]
        pair = model.understanding.lm_head.weight[torch.cat([yes, no]).to(hidden.device)]
        logits = (answer @ pair.T).float()
        odds = logits[:, 0] - logits[:, 1]
        return odds.sigmoid() if self.probability else odds

    def _question(self, prompt: str) -> str:
        for prefix in self.drop_prefixes:
            prompt = prompt.removeprefix(prefix)
        return self.question.format(prompt=prompt.strip().rstrip("."))
