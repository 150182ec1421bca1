"""Matches a region of one colour with the shapes of the scenes world, and scores the match.

A region's coverage (share of object colour in each pixel) is compared with every shape at every centre and radius near
the region's own. A region that is no clean drawing is tried as several touching drawings of one colour.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import exp, floor
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hyperbagel.scenes.drawing import coverage
from hyperbagel.scenes.palette import SHAPES

FloatArray: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]

LEAST_AREA = 20
"""Pixels of the smallest region worth a comparison; the smallest object of the world covers about 45."""

_RADII = np.arange(6.0, 16.5, 0.5)
_OFFSETS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5))
# Half the sides of the windows in which regions are compared: small ones save time, the last one fits all radii.
_HALF_WINDOWS = (12, 18)
_CLEAN = 0.9
_LEAST_SCORE = 0.05
# Where a score falls to one half: likeness to the drawing, wrongness of the worst 3x3 pixels, distance to the palette.
_LIKENESS, _WORST_PATCH, _OFF_PALETTE = 0.84, 0.40, 60.0
# Touching objects of one colour: how many pixels they may cover together, and how many they may be.
_SPLIT_AREA = (90, 1500)
_MOST_PARTS = 4
_BEYOND = 3.0


@dataclass(frozen=True, slots=True)
class FoundObject:
    """One object. x, y: centre in pixels (pixel i covers [i, i + 1)); radius: half the side of its box."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    score: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in pixels, right and bottom exclusive."""
        return (self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)


@dataclass(frozen=True, slots=True)
class Region:
    """Connected pixels of one colour.

    cover: (H, W) share of the object's colour in [0, 1], 0 outside of the region's surroundings; core: (H, W) its
    surely covered pixels; color: palette name; off_palette: distance of its colour to that palette colour.
    """

    cover: FloatArray
    core: Mask
    color: str
    off_palette: float


def match(region: Region) -> list[FoundObject]:
    """The object that a region is, or the touching objects of one colour that it consists of, or nothing.

    Coordinates are those of the region's arrays.
    """
    whole = _best_match(region)
    score = 0.0 if whole is None else whole.score
    if score < _CLEAN and _SPLIT_AREA[0] <= np.count_nonzero(region.core) <= _SPLIT_AREA[1]:
        parts = [_best_match(part) for part in _parts(region)]
        clean = [part for part in parts if part is not None and part.score > _CLEAN]
        if len(clean) == len(parts) > 1:
            return clean
    return [whole] if whole is not None and score >= _LEAST_SCORE else []


def _parts(region: Region) -> Iterator[Region]:
    """Explain a region by several drawings, each time the one that accounts for most of what is left."""
    rows, columns = np.nonzero(region.core)
    half = _HALF_WINDOWS[-1]
    # Centres lie inside the region's box, at least the smallest radius away from its sides.
    y0, y1, x0, x1 = rows.min() + 4, rows.max() - 3, columns.min() + 4, columns.max() - 3
    if y1 < y0 or x1 < x0:
        return
    pictures = _templates(half).pictures[:: len(_OFFSETS)]
    squares = _templates(half).squares[:: len(_OFFSETS)]
    drawn: list[FloatArray] = []
    rest = np.pad(_stretch(region.cover), half)
    while len(drawn) < _MOST_PARTS:
        area = rest[y0 : y1 + 2 * half, x0 : x1 + 2 * half]
        windows = np.lib.stride_tricks.sliding_window_view(area, (2 * half, 2 * half))
        # Covered pixels, less those that the drawing covers beyond the region at several times their number.
        overlap = pictures @ windows.reshape(-1, 4 * half * half).T
        gain = overlap - _BEYOND * (squares[:, None] - overlap)
        template, place = divmod(int(gain.argmax()), gain.shape[1])
        if gain[template, place] < LEAST_AREA:
            break
        y, x = y0 + place // windows.shape[1], x0 + place % windows.shape[1]
        picture = np.zeros_like(rest)
        picture[y : y + 2 * half, x : x + 2 * half] = pictures[template].reshape(2 * half, 2 * half)
        rest = rest - picture
        drawn.append(picture[half:-half, half:-half])
    for own in drawn:
        others = sum((other for other in drawn if other is not own), np.zeros_like(own))
        near = ndimage.binary_dilation(own > 0.5, iterations=2) & (others < 0.5)
        cover = np.where(near, np.clip(region.cover - others, 0, 1), 0)
        core = region.core & (own > 0.5)
        if core.any():
            yield replace(region, cover=cover, core=core)


def _best_match(region: Region) -> FoundObject | None:
    """The drawing that is most like the region; None where the region has no size of an object."""
    rows, columns = np.nonzero(region.core)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    extent = max(bottom - top, right - left) / 2
    # A square fills 0.9 of its radius; blur widens and thin tips shorten a region.
    first, last = np.searchsorted(_RADII, extent - 1), np.searchsorted(_RADII, extent + 2.5, side="right")
    radii = _RADII[first:last]
    if not len(radii):
        return None
    half = next(size for size in _HALF_WINDOWS if radii[-1] <= size - 2)
    per_radius = len(SHAPES) * len(_OFFSETS)
    chosen = slice(first * per_radius, last * per_radius)
    # Whole-pixel centres around the middle of the region's box; the templates' offsets add half pixels.
    x, y = int(left + right) // 2 - 1, int(top + bottom) // 2 - 1
    area = np.pad(_stretch(region.cover), half + 3)[y + 3 : y + 5 + 2 * half, x + 3 : x + 5 + 2 * half]
    windows = np.lib.stride_tricks.sliding_window_view(area, (2 * half, 2 * half)).reshape(9, -1)
    overlap = _templates(half).pictures[chosen] @ windows.T
    likeness = overlap / (_templates(half).squares[chosen, None] + float((area**2).sum()) - overlap)
    template, place = divmod(int(likeness.argmax()), 9)
    radius, shape, offset = np.unravel_index(template, (len(radii), len(SHAPES), len(_OFFSETS)))
    found = FoundObject(
        shape=SHAPES[shape],
        color=region.color,
        x=float(x + place % 3 + _OFFSETS[offset][0]),
        y=float(y + place // 3 + _OFFSETS[offset][1]),
        radius=float(radii[radius]),
        score=0.0,
    )
    return replace(found, score=_score(region.cover, found, float(likeness.max()), region.off_palette))


def _score(cover: FloatArray, found: FoundObject, likeness: float, off_palette: float) -> float:
    """Score in (0, 1] of a match: is it like the drawing over all, is no part of it wrong, has it a palette colour?

    Blur and noise change pixels on both sides of the rim, which cancels over 3x3 pixels; a wrong shape does not cancel.
    """
    half = _HALF_WINDOWS[-1]
    row, column = floor(found.y), floor(found.x)
    drawn = coverage(found.shape, found.radius, found.x - column, found.y - row)
    n = drawn.shape[0] // 2
    residual = np.pad(cover, half)
    residual[row - n + half : row + n + half, column - n + half : column + n + half] -= drawn
    patch = float(np.abs(ndimage.uniform_filter(residual, 3)).max())
    return (
        _falls(-likeness, -_LIKENESS, 0.015) * _falls(patch, _WORST_PATCH, 0.03) * _falls(off_palette, _OFF_PALETTE, 5)
    )


def _falls(value: float, middle: float, width: float) -> float:
    """1 far below `middle`, 0.9 at 2.2 widths below it, 0.5 there, 0 far above."""
    return 1 / (1 + exp(min((value - middle) / width, 500)))


def _stretch(cover: FloatArray) -> FloatArray:
    """Contrast-stretched coverage: noise at both ends is cut off, what remains still tells sub-pixel edges."""
    return np.clip(2 * cover - 0.5, 0, 1)


@dataclass(frozen=True, slots=True)
class _Templates:
    """Drawings of every shape. pictures: (radii * shapes * offsets, pixels); squares: their sums of squares."""

    pictures: FloatArray
    squares: FloatArray


@cache
def _templates(half: int) -> _Templates:
    """All drawings that fit a window of 2 * half pixels; radii are the slowest index."""
    radii = _RADII[: np.searchsorted(_RADII, half - 2, side="right")]
    bank = np.zeros((len(radii), len(SHAPES), len(_OFFSETS), 2 * half, 2 * half), np.float32)
    for index in np.ndindex(*bank.shape[:3]):
        drawn = coverage(SHAPES[index[1]], float(radii[index[0]]), *_OFFSETS[index[2]])
        margin = half - drawn.shape[0] // 2
        bank[index][margin : 2 * half - margin, margin : 2 * half - margin] = _stretch(drawn)
    flat = bank.reshape(-1, 4 * half * half)
    return _Templates(flat, np.einsum("np,np->n", flat, flat))
