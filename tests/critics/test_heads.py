"""Heads on maps of any size."""

from __future__ import annotations

import pytest
import torch

from hyperbagel.critics.heads import DiscriminatorHead, HeadKind, HeadStack, PointwiseHead, check_layers, spread_layers


@pytest.mark.parametrize("kind", [DiscriminatorHead, PointwiseHead])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (4, 9), (8, 8), (32, 16), (64, 64)])
def test_any_size_gives_one_logit_that_sees_the_whole_map(
    size: tuple[int, int], kind: type[DiscriminatorHead | PointwiseHead]
) -> None:
    torch.manual_seed(0)
    head = kind(6, 8)
    x = torch.randn(2, 6, *size, requires_grad=True)
    logits = head(x)
    assert logits.shape == (2,) and logits.isfinite().all()
    logits[0].backward()
    assert x.grad is not None
    assert x.grad[0].abs().sum(0).ne(0).all()  # every place of the judged map
    assert x.grad[1].eq(0).all()  # nothing of its neighbour


def test_large_maps_are_halved_three_times() -> None:
    head = DiscriminatorHead(3, 4)
    assert head.blocks(torch.randn(1, 3, 64, 32)).shape == (1, 4, 8, 4)
    assert head.blocks(torch.randn(1, 3, 16, 16)).shape == (1, 4, 2, 2)
    assert head.blocks(torch.randn(1, 3, 4, 4)).shape == (1, 4, 2, 2)


def test_a_pointwise_head_sees_contrast_and_not_the_scale_of_a_layer() -> None:
    torch.manual_seed(0)
    head, x = PointwiseHead(6, 8), torch.randn(1, 6, 2, 2)
    torch.testing.assert_close(head(100 * x), head(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(head(x.flip(2, 3)), head(x), atol=1e-5, rtol=1e-4)  # places count alike
    assert (head(x + 1) - head(x)).abs() > 1e-3


@pytest.mark.parametrize("kind", ["convolutional", "pointwise"])
def test_images_of_different_sizes_are_judged_as_if_alone(kind: HeadKind) -> None:
    torch.manual_seed(0)
    stack = HeadStack(2, 5, 8, kind)
    sizes = [(2, 3), (4, 4), (2, 3), (1, 2)]
    tokens = [torch.randn(4, 16, 5) for _ in range(2)]  # padding holds garbage
    logits = stack(tokens, sizes)
    assert logits.shape == (4, 2)
    for i, (h, w) in enumerate(sizes):
        alone = stack([x[i : i + 1, : h * w] for x in tokens], [(h, w)])
        torch.testing.assert_close(logits[i : i + 1], alone)


def test_raster_order() -> None:
    """Turning a map turns the result into that of the turned map, so rows and columns are not mixed up."""
    torch.manual_seed(0)
    stack = HeadStack(1, 5, 8)
    x = torch.randn(1, 5, 2, 6)
    direct = stack[0](x)  # type: ignore[operator]
    torch.testing.assert_close(stack([x.flatten(2).transpose(1, 2)], [(2, 6)])[:, 0], direct)


def test_layers_are_spread_to_the_last() -> None:
    assert spread_layers(4, 28) == (7, 14, 21, 28)
    assert spread_layers(4, 6) == (2, 3, 4, 6)
    assert spread_layers(4, 2) == (1, 2)
    assert check_layers((1, 6), 6, "it") == (1, 6)
    with pytest.raises(ValueError, match=r"layers 1 to 6, cannot tap \[0, 7\]"):
        check_layers((0, 7), 6, "it")
