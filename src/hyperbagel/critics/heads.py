"""Discriminator heads of DMDX (arXiv 2507.18569) on feature maps of any size."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HeadKind = Literal["convolutional", "pointwise"]
_BLOCKS = 3


class ConvBlock(nn.Module):
    """4x4 convolution, group norm, SiLU; halves sides of at least 4, and keeps smaller ones, with the same weights."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel_size=4)
        self.norm = nn.GroupNorm(math.gcd(32, channels_out), channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w')."""
        if min(x.shape[2:]) >= 4:
            x = F.conv2d(F.pad(x, (1, 1, 1, 1)), self.conv.weight, self.conv.bias, stride=2)
        else:
            x = self.conv(F.pad(x, (1, 2, 1, 2)))
        return F.silu(self.norm(x))


class DiscriminatorHead(nn.Module):
    """Three `ConvBlock`s, a 3x3 convolution, the mean over the map, and a linear layer to one logit.

    features: channels of the map; channels: width of the head.

    Examples:
        >>> head = DiscriminatorHead(features=6, channels=8)
        >>> head(torch.randn(2, 6, 5, 7)).shape
        torch.Size([2])
    """

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        widths = [features] + [channels] * _BLOCKS
        self.blocks = nn.Sequential(*(ConvBlock(a, b) for a, b in pairwise(widths)))
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.logit = nn.Linear(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, features, h, w) -> (B,)."""
        x = x.to(self.logit.weight.dtype)
        pooled = F.silu(self.conv(self.blocks(x))).mean((2, 3))
        logit: Tensor = self.logit(pooled)
        return logit[:, 0]


class PointwiseHead(nn.Module):
    """RMS norm and two layers on each place alone, the mean over the map, and a linear layer to one logit.

    It keeps what strides and group norms take from maps of a few places a side: levels and contrasts. The norm makes
    layers of all depths alike large.

    Examples:
        >>> head = PointwiseHead(features=6, channels=8)
        >>> head(torch.randn(2, 6, 5, 7)).shape
        torch.Size([2])
    """

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.places = nn.Sequential(
            nn.RMSNorm(features), nn.Linear(features, channels), nn.SiLU(), nn.Linear(channels, channels), nn.SiLU()
        )
        self.logit = nn.Linear(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, features, h, w) -> (B,)."""
        tokens = x.to(self.logit.weight.dtype).flatten(2).transpose(1, 2)
        logit: Tensor = self.logit(self.places(tokens).mean(1))
        return logit[:, 0]


_HEADS: dict[HeadKind, type[DiscriminatorHead | PointwiseHead]] = {
    "convolutional": DiscriminatorHead,
    "pointwise": PointwiseHead,
}


class HeadStack(nn.ModuleList):
    """One head for each tapped layer, over token sequences of images of different sizes."""

    def __init__(self, layers: int, features: int, channels: int, kind: HeadKind = "convolutional") -> None:
        super().__init__(_HEADS[kind](features, channels) for _ in range(layers))

    def forward(self, tokens: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Logits (B, heads) of token maps.

        tokens: one (B, n, D) for each head, raster order, padded at the end; sizes: (h, w) of each image. Images of one
        size are judged together and padding is cut off first, so no image's logit depends on its neighbours.
        """
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, size in enumerate(sizes):
            groups[size].append(i)
        if len(groups) == 1:
            return torch.stack([h(_as_map(x, sizes[0])) for h, x in zip(self, tokens, strict=True)], 1)
        order = torch.tensor([i for members in groups.values() for i in members], device=tokens[0].device)
        logits = torch.stack(
            [
                torch.cat([head(_as_map(x[members], size)) for size, members in groups.items()])
                for head, x in zip(self, tokens, strict=True)
            ],
            dim=1,
        )
        return logits[order.argsort()]


def _as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, n, D) -> (B, D, h, w), without the padding after the first h * w tokens."""
    return tokens[:, : size[0] * size[1]].transpose(1, 2).unflatten(2, size)


def spread_layers(count: int, layers: int) -> tuple[int, ...]:
    """`count` of the layers 1..`layers`, evenly spread and with the last one."""
    return tuple(sorted({max(1, round(layers * (i + 1) / count)) for i in range(count)}))


def check_layers(chosen: Sequence[int], layers: int, what: str) -> tuple[int, ...]:
    """Chosen layers, or a ValueError naming those that do not exist."""
    wrong = [layer for layer in chosen if not 1 <= layer <= layers]
    if wrong or not chosen:
        raise ValueError(f"{what} has layers 1 to {layers}, cannot tap {wrong or 'none'}: change the critic's `layers`")
    return tuple(chosen)
