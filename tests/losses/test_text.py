"""Losses of answers: which tokens count, and how much."""

from __future__ import annotations

import torch

from hyperbagel.bagel.layout import IGNORED
from hyperbagel.losses.text import answer_weights, text_loss, token_cross_entropy

# Two answers of 1 and 2 ids (so 2 and 3 labels) in one row, and one that ends with the row above's neighbour.
LABELS = torch.tensor(
    [[IGNORED, 3, 1, IGNORED, 4, 5, 1], [2, 2, 2, 1, IGNORED, IGNORED, IGNORED], [IGNORED] * 7],
)


def test_weights_follow_the_length_of_each_answer() -> None:
    expected = torch.zeros(3, 7)
    expected[0, 1:3], expected[0, 4:], expected[1, :4] = 2**-0.5, 3**-0.5, 0.5
    torch.testing.assert_close(answer_weights(LABELS), expected)


def test_mean_over_labels_only_and_nothing_without_labels() -> None:
    logits = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    cross_entropy, answered = token_cross_entropy(logits, LABELS), LABELS != IGNORED
    assert not cross_entropy[~answered].any()
    torch.testing.assert_close(text_loss(cross_entropy, answered), cross_entropy[answered].mean())
    half = text_loss(cross_entropy, answered, total=2 * answered.sum())
    torch.testing.assert_close(2 * half, cross_entropy[answered].mean())
    nothing = text_loss(token_cross_entropy(logits[2:], LABELS[2:]), answer_weights(LABELS[2:]))
    nothing.backward()
    assert nothing == 0 and logits.grad is not None and not logits.grad.any()
