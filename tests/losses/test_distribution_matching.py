"""DMD's gradient."""

from __future__ import annotations

import torch

from hyperbagel.losses.distribution_matching import dmd_gradient, dmd_loss


def test_gradient_by_hand() -> None:
    x0_hat = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]])
    real = torch.tensor([[[0.0, 0.0]], [[2.0, 2.0]]])
    fake = torch.tensor([[[3.0, 1.5]], [[1.0, 4.0]]])
    # normalisers: (1 + 2) / 2 = 1.5 and (2 + 2) / 2 = 2
    expected = torch.tensor([[[2.0, 1.0]], [[-0.5, 1.0]]])
    assert torch.equal(dmd_gradient(x0_hat, real, fake), expected)


def test_loss_has_that_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x0_hat, real, fake = torch.randn(3, 2, 4, 3, generator=generator)
    x0_hat.requires_grad_()
    gradient = dmd_gradient(x0_hat, real, fake)
    assert not gradient.requires_grad
    dmd_loss(x0_hat, gradient).backward()
    torch.testing.assert_close(x0_hat.grad, gradient / x0_hat.numel())


def test_normalised_for_each_image_in_float32() -> None:
    """Scaling one image's three estimates together leaves its gradient alone, also in half precision."""
    generator = torch.Generator().manual_seed(0)
    x0_hat, real, fake = torch.randn(3, 2, 4, 3, generator=generator)
    factor = torch.tensor([1.0, 64.0])[:, None, None]
    scaled = dmd_gradient(x0_hat * factor, real * factor, fake * factor)
    torch.testing.assert_close(scaled, dmd_gradient(x0_hat, real, fake))
    half = dmd_gradient(*(x.bfloat16() for x in (x0_hat, real, fake)))
    assert half.dtype == torch.float32


def test_perfect_estimate_gives_no_infinity() -> None:
    same = torch.ones(1, 2, 2)
    assert dmd_gradient(same, same, same).eq(0).all()
    assert dmd_gradient(same, same, same + 1e-3).isfinite().all()


def test_padding_neither_counts_nor_moves() -> None:
    generator = torch.Generator().manual_seed(0)
    x0_hat, real, fake = torch.randn(3, 1, 4, 3, generator=generator)
    valid = torch.tensor([[True, True, False, False]])
    padded = dmd_gradient(x0_hat, real, fake, valid)
    torch.testing.assert_close(padded[:, :2], dmd_gradient(x0_hat[:, :2], real[:, :2], fake[:, :2]))
    assert padded[:, 2:].eq(0).all()
    x0_hat.requires_grad_()
    dmd_loss(x0_hat, padded, valid).backward()
    assert x0_hat.grad is not None and x0_hat.grad[:, 2:].eq(0).all()
