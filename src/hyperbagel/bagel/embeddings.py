"""Position tables, timestep embedding and rotary positions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


def sincos_frequencies(width: int) -> np.ndarray:
    """The (width / 4,) frequencies of each axis of a 2-D sin-cos table, in radians a place, highest first."""
    return 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))


def sincos_position_table(side: int, width: int) -> Tensor:
    """The fixed 2-D sin-cos table: (side * side, width) float32, row id = row * side + column.

    The first half of the columns encodes the image column, the second half the row; each half is [sin, cos].
    Computed in float64, as the stored tables of the official checkpoint were.
    """
    frequency = sincos_frequencies(width)

    def encode(position: np.ndarray) -> np.ndarray:
        angle = np.outer(position.reshape(-1), frequency)
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    row, column = np.meshgrid(np.arange(side, dtype=np.float64), np.arange(side, dtype=np.float64), indexing="ij")
    return torch.from_numpy(np.concatenate([encode(column), encode(row)], axis=1)).float()


class PositionTable(nn.Module):
    """A stored, never trained sin-cos table, looked up by id. Key in checkpoints: `pos_embed`."""

    pos_embed: Tensor

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        # On the meta device only the shape is wanted: the values come with a checkpoint.
        meta = torch.get_default_device().type == "meta"
        self.register_buffer("pos_embed", torch.empty(side**2, width) if meta else sincos_position_table(side, width))

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (...) int64 -> (..., width)."""
        return self.pos_embed[ids]


class TimestepEmbedder(nn.Module):
    """Sinusoid of a scalar, then a two-layer MLP. Used for t in [0, 1] (not times 1000) and for guidance scales."""

    def __init__(self, width: int, features: int = 256) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def sinusoid(self, t: Tensor) -> Tensor:
        """t: (...) -> (..., features) float32: cosines first, then sines, of t * 10000^(-i / half)."""
        half = self.features // 2
        exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
        angle = t.float()[..., None] * torch.exp(-math.log(10000) * exponent)
        return torch.cat([angle.cos(), angle.sin()], dim=-1)

    def forward(self, t: Tensor) -> Tensor:
        """t: (...) -> (..., width)."""
        output: Tensor = self.mlp(self.sinusoid(t).to(next(self.mlp.parameters()).dtype))
        return output


class Rotation(NamedTuple):
    """Cosines and sines of the rope angles, each (B, 1, N, head_dim), sines signed for the rotate-half layout.

    N = 1 stands for any number of tokens at one position (an image).
    """

    cos: Tensor
    sin: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Rotate x: (B, heads, N, head_dim); pairs are (j, j + head_dim / 2)."""
        return x * self.cos + x.roll(x.shape[-1] // 2, dims=-1) * self.sin

    def split(self, first: int) -> tuple[Rotation, Rotation]:
        """The rotations of the first tokens and of the rest."""
        if self.cos.shape[2] == 1:
            return self, self
        return (
            Rotation(self.cos[:, :, :first], self.sin[:, :, :first]),
            Rotation(self.cos[:, :, first:], self.sin[:, :, first:]),
        )


def rotation(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Rope for positions (B, N) int64: angle of pair j is position * theta^(-2j / head_dim), computed in float32."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angle = positions[:, None, :, None].float() * theta**-exponent
    cos, sin = angle.cos(), angle.sin()
    return Rotation(torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype))
