"""The next-token loss of answers, per token or with every answer's tokens reweighted by its length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.bagel.layout import IGNORED


def token_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Unreduced cross-entropy in float32, 0 where the label is IGNORED. logits: (..., V), labels: (...) -> (...)."""
    flat = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view_as(labels)


def answer_weights(labels: Tensor) -> Tensor:
    """1 / sqrt(labels of the answer) for each label of an answer, 0 elsewhere. labels: (B, N) -> (B, N) float32.

    An answer of n ids has n + 1 labels, the end of text being the last. Answers are told apart by the position without
    label that the fed end of text leaves between them.
    """
    answer = labels.ne(IGNORED)
    starts = answer & ~F.pad(answer, (1, 0))[:, :-1]
    number = starts.flatten().cumsum(0)
    lengths = torch.zeros(labels.numel() + 1, device=labels.device).index_add(0, number, answer.flatten().float())
    return (lengths[number].clamp(min=1).rsqrt() * answer.flatten()).view_as(labels)


def text_loss(cross_entropy: Tensor, weights: Tensor, total: Tensor | None = None) -> Tensor:
    """sum(w * ce) / sum(w), and 0 without any weight.

    cross_entropy: unreduced; weights: of the same shape, 1 at labels and 0 elsewhere for the plain mean, or
    `answer_weights`. total: sum of weights to divide by, for a mean over several ranks or accumulated batches.
    """
    total = weights.float().sum() if total is None else total
    return (cross_entropy * weights).sum() / total.clamp(min=torch.finfo(torch.float32).tiny)
