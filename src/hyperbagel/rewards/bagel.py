"""BAGEL's own understanding as a reward: what it answers to a question, or how it would describe a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.bagel.differentiable_resize import encoder_views
from hyperbagel.bagel.layout import IGNORED, Layout
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Segment, TextSegment, ViTSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.bagel.transfer import moved
from hyperbagel.rewards.base import Reward


class UnderstandingReward(Reward):
    """A reward that asks a BAGEL model about pictures: the one that is trained, or another.

    The understanding stack is never trained, so the judge does not follow the student. The gradient reaches the pixels
    through the vision tower.

    Args:
        model: folder of another BAGEL to ask; None asks the one that is trained.
    """

    def __init__(self, model: str | None = None) -> None:
        super().__init__()
        self.judge: Bagel | None = None
        self._shared: tuple[Bagel, ...] = ()  # in a tuple, so that the stage's model is not registered again
        self._tokenizer: Tokenizer | None = None
        if model is not None:
            self.judge = Bagel.from_pretrained(model, without=("generation", "autoencoder")).requires_grad_(False)
            self._tokenizer = Tokenizer.from_pretrained(model)

    def attach(self, model: Bagel, tokenizer: Tokenizer) -> None:
        """Ask this model, unless another one was given."""
        if self.judge is None:
            self._shared, self._tokenizer = (model,), tokenizer

    @property
    def asked(self) -> tuple[Bagel, Tokenizer]:
        """The model that is asked, and its tokenizer. Raises RuntimeError before `attach`."""
        if self._tokenizer is None:
            raise RuntimeError(f"{type(self).__name__} has no model to ask: give it `model`, or use it in a stage")
        return self.judge or self._shared[0], self._tokenizer

    def read(
        self, images: Sequence[Tensor], questions: Sequence[str], answers: Sequence[Tensor]
    ) -> tuple[Tensor, Layout]:
        """Pictures (3, H, W), each with a question and the ids of its answer -> states (B, n, D) and their layout.

        The state at a place predicts its label there, which is `IGNORED` but for the answer and the eos after it.
        """
        model, tokenizer = self.asked
        views = encoder_views(images, model.config.vit_transform)
        documents: list[list[Segment]] = [
            [
                ViTSegment(view),
                TextSegment(tokenizer.encode(question)),
                TextSegment(answer, loss=True),
            ]
            for view, question, answer in zip(views, questions, answers, strict=True)
        ]
        layout = model.layout(documents)
        return model.understanding.norm(model.run(layout).streams.und), layout


class BagelReward(UnderstandingReward):
    """Log-odds of "yes" against "no" to a question on the picture, asked of the model's own understanding stack.

    Args:
        question: with `{prompt}` for what the picture should show.
        drop_prefixes: openings of prompts that do not belong into the question.
        answers: the two answers; their first tokens are compared.
        probability: score p(yes) of the two instead, between 0 and 1.
        model: folder of another BAGEL to ask; None asks the one that is trained.

    Examples:
        >>> from hyperbagel.bagel.tokenizer import Tokenizer
        >>> reward = BagelReward(probability=True)
        >>> reward.attach(model, Tokenizer.from_pretrained(folder))
        >>> (score,) = reward.score([torch.zeros(3, 32, 32)], ["a photo of a red circle"])
        >>> 0 <= float(score) <= 1
        True
    """

    def __init__(
        self,
        question: str = "Does this picture show {prompt}?",
        drop_prefixes: tuple[str, ...] = ("a photo of ",),
        answers: tuple[str, str] = ("yes", "no"),
        probability: bool = False,
        model: str | None = None,
    ) -> None:
        super().__init__(model)
        if "{prompt}" not in question:
            raise ValueError(f"the question {question!r} needs {{prompt}} for what the picture should show")
        self.question, self.drop_prefixes, self.answers = question, drop_prefixes, answers
        self.probability = probability

    def score(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """log p(yes) - log p(no), or p(yes), (B,). Raises RuntimeError before `attach`."""
        model, tokenizer = self.asked
        yes, no = (tokenizer.encode(answer)[:1] for answer in self.answers)
        states, layout = self.read(images, [self._question(prompt) for prompt in prompts], [yes] * len(images))
        # The first label of an answer stands where the answer begins: its next token is "yes" or "no".
        begins = layout.labels.ne(IGNORED).int().argmax(1)
        answer = states[torch.arange(len(images), device=states.device), begins]
        pair = model.understanding.lm_head.weight[moved(torch.cat([yes, no]), states.device)]
        logits = (answer @ pair.T).float()
        odds = logits[:, 0] - logits[:, 1]
        return odds.sigmoid() if self.probability else odds

    def _question(self, prompt: str) -> str:
        for prefix in self.drop_prefixes:
            prompt = prompt.removeprefix(prefix)
        return self.question.format(prompt=prompt.strip().rstrip("."))


class CaptionReward(UnderstandingReward):
    """Mean log-probability per token with which the model's own understanding describes the picture as it should be.

    It takes whole captions for prompts (a document's meta may have one, see `RewardTerm.prompt_key`), and sees
    everything that they say, where a question with yes or no for an answer sees one thing.

    Args:
        question: what asks for a description.
        temperature: score p(caption)^(1 / temperature) instead, between 0 and 1. Its gradient is that of pictures
            which are nearly right, while the log-probability's is that of hopeless ones.
        model: folder of another BAGEL to ask; None asks the one that is trained.

    Raises ValueError for a temperature that is not above 0.

    Examples:
        >>> from hyperbagel.bagel.tokenizer import Tokenizer
        >>> reward = CaptionReward()
        >>> reward.attach(model, Tokenizer.from_pretrained(folder))
        >>> reward.score([torch.zeros(3, 32, 32)], ["A red circle."]).shape
        torch.Size([1])
    """

    def __init__(
        self,
        question: str = "Describe the picture in detail.",
        temperature: float | None = None,
        model: str | None = None,
    ) -> None:
        super().__init__(model)
        if temperature is not None and temperature <= 0:
            raise ValueError(f"CaptionReward needs temperature > 0, or null for log-probabilities, got {temperature}")
        self.question, self.temperature = question, temperature

    def score(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """Mean log p of the tokens of each caption and its end, or a power of p, (B,). RuntimeError before `attach`."""
        model, tokenizer = self.asked
        answers = [tokenizer.encode(caption) for caption in prompts]
        states, layout = self.read(images, [self.question] * len(images), answers)
        learnt, labels = layout.learnt, layout.labels
        logits = states.flatten(0, 1)[learnt] @ model.understanding.lm_head.weight.T
        log_p = -F.cross_entropy(logits.float(), labels.flatten()[learnt], reduction="none")
        sums = log_p.new_zeros(len(images)).index_add(0, learnt // labels.shape[1], log_p)
        return sums / labels.ne(IGNORED).sum(1) if self.temperature is None else (sums / self.temperature).exp()
