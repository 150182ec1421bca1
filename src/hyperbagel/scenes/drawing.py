"""Scenes as anti-aliased RGB pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from math import ceil, floor, pi

import numpy as np
from numpy.typing import NDArray

from hyperbagel.scenes.palette import BACKGROUNDS, COLORS
from hyperbagel.scenes.world import Scene

Grid = NDArray[np.float64]
Mask = NDArray[np.bool_]

SUPERSAMPLING = 8
"""Sub-pixels a side from which a pixel's coverage is counted."""


def _inside_polygon(x: Grid, y: Grid, corners: NDArray[np.float64]) -> Mask:
    """Even-odd rule; corners: (n, 2)."""
    inside = np.zeros(np.broadcast(x, y).shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


def _fill_box(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """`corners` shifted and stretched so that they just fill the box [-1, 1] x [-1, 1]."""
    low, high = corners.min(0), corners.max(0)
    return 2 * (corners - low) / (high - low) - 1


@cache
def _star_corners() -> NDArray[np.float64]:
    angle = np.arange(10) * pi / 5
    radius = np.where(np.arange(10) % 2, 0.42, 1.0)
    return _fill_box(np.stack([radius * np.sin(angle), -radius * np.cos(angle)], 1))


@cache
def _heart_corners() -> NDArray[np.float64]:
    t = np.linspace(0, 2 * pi, 64, endpoint=False)
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return _fill_box(np.stack([16 * np.sin(t) ** 3, y], 1))


# Membership of points in each shape; the shapes live in the box [-1, 1] x [-1, 1], y downwards.
_INSIDE: dict[str, Callable[[Grid, Grid], Mask]] = {
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 1,
    "triangle": lambda x, y: (y <= 1) & (2 * abs(x) <= y + 1),
    "diamond": lambda x, y: abs(x) + abs(y) <= 1,
    "star": lambda x, y: _inside_polygon(x, y, _star_corners()),
    "ring": lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.52**2),
    "cross": lambda x, y: (np.maximum(abs(x), abs(y)) <= 1) & (np.minimum(abs(x), abs(y)) <= 0.34),
    "heart": lambda x, y: _inside_polygon(x, y, _heart_corners()),
}


@lru_cache(maxsize=4096)
def coverage(shape: str, radius: float, dx: float = 0.0, dy: float = 0.0) -> NDArray[np.float32]:
    """Share of each pixel that a shape covers.

    Returns (2 n, 2 n) in [0, 1], n = ceil(radius) + 1, read-only; the shape's centre lies at (n + dx, n + dy),
    with dx and dy in [0, 1).
    """
    n = ceil(radius) + 1
    ticks = (np.arange(2 * n * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - n
    inside = _INSIDE[shape]((ticks[None, :] - dx) / radius, (ticks[:, None] - dy) / radius)
    mask = inside.reshape(2 * n, SUPERSAMPLING, 2 * n, SUPERSAMPLING).mean((1, 3), dtype=np.float32)
    mask.setflags(write=False)
    return mask


def draw(scene: Scene) -> NDArray[np.uint8]:
    """The picture of a scene. Returns (height, width, 3) uint8 RGB."""
    image = np.empty((scene.height, scene.width, 3), np.uint8)
    image[:] = BACKGROUNDS[scene.background]
    for item in scene.objects:
        left, top = floor(item.x), floor(item.y)
        alpha = coverage(item.shape, item.radius, item.x - left, item.y - top)
        n = alpha.shape[0] // 2
        rows = slice(max(top - n, 0), min(top + n, scene.height))
        columns = slice(max(left - n, 0), min(left + n, scene.width))
        alpha = alpha[rows.start - top + n : rows.stop - top + n, columns.start - left + n : columns.stop - left + n]
        region = image[rows, columns]
        color = np.asarray(COLORS[item.color], np.float32)
        region[:] = region + alpha[..., None] * (color - region) + np.float32(0.5)
    return image
