"""Adversarial losses against cases computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from hyperbagel.losses.adversarial import approximate_r1, critic_loss, generator_loss, told_apart

REAL = torch.tensor([[2.0, 0.5], [-1.0, 1.0]])
FAKE = torch.tensor([[-2.0, -0.5], [1.0, -1.0]])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_hinge() -> None:
    # ReLU(1 - real) = 0, .5, 2, 0; ReLU(1 + fake) = 0, .5, 2, 0
    assert critic_loss(REAL, FAKE) == 2.5 / 4 + 2.5 / 4
    assert generator_loss(FAKE) == 2.5 / 4


def test_hinge_is_satisfied_beyond_the_margin() -> None:
    real = torch.tensor([[1.5]], requires_grad=True)
    loss = critic_loss(real, torch.tensor([[-1.5]]))
    loss.backward()
    assert loss == 0 and real.grad is not None and real.grad == 0


def test_non_saturating() -> None:
    expected = sum(softplus(-x) for x in REAL.flatten().tolist()) / 4
    expected += sum(softplus(x) for x in FAKE.flatten().tolist()) / 4
    assert float(critic_loss(REAL, FAKE, "non_saturating")) == pytest.approx(expected)
    expected = sum(softplus(-x) for x in FAKE.flatten().tolist()) / 4
    assert float(generator_loss(FAKE, "non_saturating")) == pytest.approx(expected)


def test_generator_gains_from_higher_logits() -> None:
    for objective in ("hinge", "non_saturating"):
        fake = FAKE.clone().requires_grad_()
        generator_loss(fake, objective).backward()  # type: ignore[arg-type]
        assert fake.grad is not None and (fake.grad < 0).all()


def test_approximate_r1_is_the_squared_change() -> None:
    assert approximate_r1(REAL, REAL + torch.tensor([[1.0, 2.0], [0.0, 3.0]])) == (1 + 4 + 0 + 9) / 4


def test_approximate_r1_approaches_the_gradient_penalty() -> None:
    """For small noise E (D(x) - D(x + sigma e))^2 / sigma^2 is the squared gradient norm."""
    gradient = torch.tensor([0.3, -1.2, 2.0])
    noise = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0))
    perturbed = (0.01 * noise) @ gradient
    penalty = approximate_r1(torch.zeros(200_000, 1), perturbed[:, None]) / 0.01**2
    assert float(penalty) == pytest.approx(float(gradient.square().sum()), rel=0.02)


def test_what_is_told_apart_counts_pairs_and_halves_of_equal_ones() -> None:
    real, fake = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [4.0, 0.0]])  # means 2, 0; 0, 2
    told = told_apart(real.requires_grad_(), fake)
    assert told["auc"] == (1 + 0.5 + 0.5 + 0) / 4 and told["paired"] == 0.5
    assert not told["auc"].requires_grad
    assert told_apart(real, real)["paired"] == 0.5
