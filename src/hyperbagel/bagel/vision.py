"""SigLIP vision tower for images of any size, and the connector to the language model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperbagel.bagel.config import ViTConfig
from hyperbagel.bagel.grid import grid_ids
from hyperbagel.bagel.groups import in_groups, padded


def patchify(image: Tensor, patch: int) -> Tensor:
    """(..., C, h * patch, w * patch) -> (..., h * w, patch * patch * C): raster order, channel fastest."""
    *batch, channels, height, width = image.shape
    x = image.reshape(*batch, channels, height // patch, patch, width // patch, patch)
    x = torch.einsum("...chpwq->...hwpqc", x)
    return x.reshape(*batch, (height // patch) * (width // patch), patch * patch * channels)


def patches_of(images: Sequence[Tensor], patch: int) -> Tensor:
    """Images (C, H, W) of any sizes, one at least, to patches (B, n, patch * patch * C), zero at padding.

    Those of one size are cut up together.
    """
    shapes = [tuple(image.shape) for image in images]
    if len(set(shapes)) == 1:
        return patchify(torch.stack(list(images)), patch)
    return padded(in_groups(shapes, lambda some: patchify(torch.stack([images[i] for i in some]), patch)))


def unpatchify(tokens: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """Inverse of `patchify`: (..., h * w, patch * patch * C) with size (h, w) -> (..., C, h * patch, w * patch)."""
    height, width = size
    *batch, _, channels = tokens.shape
    x = tokens.reshape(*batch, height, width, patch, patch, channels // patch**2)
    x = torch.einsum("...hwpqc->...chpwq", x)
    return x.reshape(*batch, channels // patch**2, height * patch, width * patch)


class ViTAttention(nn.Module):
    """Full multi-head attention inside one image."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: (images, N, width), mask: (images, 1, 1, N) bool or None."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in projections)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        output: Tensor = self.out_proj(attended)
        return output


class ViTLayer(nn.Module):
    """Pre-norm transformer layer with a tanh-GELU MLP."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = ViTAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: (images, N, width)."""
        x = x + self.self_attn(self.layer_norm1(x), mask)
        x = x + self.fc2(F.gelu(self.fc1(self.layer_norm2(x)), approximate="tanh"))
        return x


class VisionTower(nn.Module):
    """Patch embedding, learned positions (top-left corner of the grid, never interpolated), layers, post norm."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(config.patch_dim, config.hidden_size)
        self.position_embedding = nn.Embedding(config.patches_per_side**2, config.hidden_size)
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, patches: Tensor, position_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """patches: (images, N, patch_dim), position_ids: (images, N), mask: (images, N) bool, False at padding
        -> (images, N, width)."""
        last = deque(self.streams(patches, position_ids, mask), maxlen=1).pop()  # none before it is kept
        output: Tensor = self.post_layernorm(last)
        return output

    def streams(self, patches: Tensor, position_ids: Tensor, mask: Tensor | None = None) -> Iterator[Tensor]:
        """The residual stream (images, N, width) before the first layer and after each, with the inputs of `forward`;
        a layer is computed when its stream is asked for."""
        x = self.patch_embedding(patches) + self.position_embedding(position_ids)
        yield x
        keys = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, keys)
            yield x

    def features(self, pictures: Tensor) -> Tensor:
        """Features of pictures of one size, whole patches each: (B, 3, h * patch, w * patch) in [-1, 1] ->
        (B, h * w, width)."""
        patch = self.config.patch_size
        size = (pictures.shape[2] // patch, pictures.shape[3] // patch)
        ids = grid_ids(size, self.config.patches_per_side).to(pictures.device)
        output: Tensor = self(patchify(pictures, patch), ids.expand(len(pictures), -1))
        return output


class PooledFeatures(nn.Module):
    """One feature vector per picture: the mean of a tower's features over the patches."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, width of the tower). Pictures are resized to whole patches where they are not."""
        config = self.tower.config
        patch, side = config.patch_size, config.patches_per_side
        pixels = images.float().div(255).sub(0.5).div(0.5).to(self.tower.patch_embedding.weight.dtype)
        height, width = (min(max(length // patch, 1), side) * patch for length in images.shape[-2:])
        if (height, width) != tuple(images.shape[-2:]):
            pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
        return self.tower.features(pixels).mean(1)


class Connector(nn.Module):
    """Two-layer tanh-GELU MLP from the tower's width to the language model's."""

    def __init__(self, width: int, llm_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, llm_width)
        self.fc2 = nn.Linear(llm_width, llm_width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width) -> (..., llm_width)."""
        output: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return output
