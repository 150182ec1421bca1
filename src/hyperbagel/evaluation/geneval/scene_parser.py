"""Reads a drawing of the scenes world back into its objects, exactly, without any learned model.

API, also for judges that compare two pictures:

* `parse_scene(image) -> ParsedScene` with `objects`, a tuple of `FoundObject(shape, color, x, y, radius, score)`, best
  first, whose `box` is (x0, y0, x1, y1); `background`, the tint's name or None if it is none of the palette's;
  `background_rgb`, its estimated colour.
* image: (3, H, W) uint8 tensor, or (H, W, 3) uint8 array as the scenes package draws them.
* score: in (0, 1]; above 0.9 for a clean drawing, also after the mild blur and noise of an autoencoder; below 0.3 for a
  shape of another kind or a malformed one. `parsed.clean(0.9)` are the objects to trust.

How: the background is the colour of the picture's rim (a picture whose rim is not mostly plain shows no objects);
what differs from it is split into regions of one palette colour; `scene_matching` tells which drawing each region is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from torch import Tensor

from hyperbagel.evaluation.geneval.scene_matching import LEAST_AREA, FloatArray, FoundObject, Mask, Region, match
from hyperbagel.scenes.palette import BACKGROUNDS, COLORS

__all__ = ["FoundObject", "ParsedScene", "parse_scene"]

# Distances are Euclidean in RGB units of 1/255. Objects differ from all backgrounds by 90 or more, palette colours from
# each other by 93 or more, backgrounds from each other by 24 or more.
_FOREGROUND = 40.0
_BACKGROUND_TOLERANCE = 25.0
# A pixel this far from the line between background and object counts less as object: it belongs to a neighbour's rim.
_IMPURITY = 80.0
# A pixel that another palette colour explains better by this much belongs to another object.
_OTHER_COLOR = 30.0
# Pixels around a connected foreground that still belong to its rim.
_MARGIN = 3
_BINOMIAL = np.array([0.25, 0.5, 0.25], np.float32)
_COLOR_NAMES = tuple(COLORS)
_COLOR_VALUES = np.array(list(COLORS.values()), np.float32)


@dataclass(frozen=True, slots=True)
class ParsedScene:
    """All objects of a picture, best first, and its background."""

    objects: tuple[FoundObject, ...]
    background: str | None
    background_rgb: tuple[float, float, float]

    def clean(self, threshold: float = 0.9) -> tuple[FoundObject, ...]:
        """The objects with a score strictly above `threshold`."""
        return tuple(found for found in self.objects if found.score > threshold)


def parse_scene(image: Tensor | npt.NDArray[np.uint8]) -> ParsedScene:
    """Find all objects of a picture: (3, H, W) uint8 tensor or (H, W, 3) uint8 array. ValueError for anything else."""
    pixels = _pixels(image)
    background = _background(pixels)
    smooth = ndimage.convolve1d(ndimage.convolve1d(pixels, _BINOMIAL, axis=0), _BINOMIAL, axis=1)
    foreground = np.linalg.norm(smooth - background, axis=-1) > _FOREGROUND
    plain = np.median(_rim(foreground)) == 0
    found = _find(pixels, smooth, foreground, background) if plain else []
    distances = {name: float(np.linalg.norm(background - rgb)) for name, rgb in BACKGROUNDS.items()}
    nearest = min(distances, key=distances.__getitem__)
    return ParsedScene(
        objects=tuple(found),
        background=nearest if distances[nearest] <= _BACKGROUND_TOLERANCE else None,
        background_rgb=(float(background[0]), float(background[1]), float(background[2])),
    )


def _pixels(image: Tensor | npt.NDArray[np.uint8]) -> FloatArray:
    array = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) and image.ndim == 3 else np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"expected a (3, H, W) uint8 tensor or (H, W, 3) uint8 array, got {array.shape} {array.dtype}")
    return array.astype(np.float32)


def _background(pixels: FloatArray) -> FloatArray:
    """The rim's median colour, refined by the mean of all pixels that are near it: (3,)."""
    first: FloatArray = np.median(_rim(pixels), axis=0).astype(np.float32)
    near = np.linalg.norm(pixels - first, axis=-1) < _FOREGROUND
    return pixels[near].mean(axis=0) if near.any() else first


def _rim(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The outermost two rows and columns of (H, W, ...): (n, ...)."""
    sides = (values[:2], values[-2:], values[:, :2], values[:, -2:])
    return np.concatenate([side.reshape(-1, *values.shape[2:]) for side in sides])


def _find(pixels: FloatArray, smooth: FloatArray, foreground: Mask, background: FloatArray) -> list[FoundObject]:
    """The objects that the connected parts of `foreground` (H, W) consist of, best first."""
    found: list[FoundObject] = []
    labels, _ = ndimage.label(foreground)
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        top, left = max(rows.start - _MARGIN, 0), max(columns.start - _MARGIN, 0)
        part = (slice(top, rows.stop + _MARGIN), slice(left, columns.stop + _MARGIN))
        for region in _regions(pixels[part], smooth[part], labels[part] == label, background):
            found += [replace(one, x=one.x + left, y=one.y + top) for one in match(region)]
    return sorted(found, key=lambda one: -one.score)


def _regions(pixels: FloatArray, smooth: FloatArray, rest: Mask, background: FloatArray) -> Iterator[Region]:
    """Split connected foreground `rest` (H, W) into regions of one palette colour, the thickest colour first."""
    distances = _distances(smooth, background)
    nearest = distances.min(-1)
    names = distances.argmin(-1)
    while np.count_nonzero(rest) >= LEAST_AREA:
        # Rims are mixtures of colours, so the pixels far from any rim tell what colour there is.
        depth = ndimage.distance_transform_cdt(np.pad(rest, 1), "taxicab")[1:-1, 1:-1]
        deep = depth >= max(0.6 * depth.max(), 2)
        if not deep.any():
            return
        color = int(np.bincount(names[deep]).argmax())
        tint = np.median(pixels[deep & (names == color)], axis=0)
        foreign = distances[..., color] - nearest > _OTHER_COLOR
        core = rest & (_cover(smooth, background, tint) > 0.5) & ~foreign
        labels, number = ndimage.label(core)
        cover = _cover(pixels, background, tint)
        off_palette = float(np.linalg.norm(tint - _COLOR_VALUES[color]))
        for label in range(1, number + 1):
            own = labels == label
            if np.count_nonzero(own) >= LEAST_AREA:
                near = ndimage.binary_dilation(own, iterations=2) & ~((labels > 0) & ~own) & ~foreign
                yield Region(np.where(near, cover, 0), own, _COLOR_NAMES[color], off_palette)
        rest = rest & ~ndimage.binary_dilation(core | (deep & (names == color)))


def _distances(pixels: FloatArray, background: FloatArray) -> FloatArray:
    """How far each pixel is from being a mixture of the background and each palette colour: (H, W, colours)."""
    axes = _COLOR_VALUES - background
    offset = (pixels - background)[:, :, None]
    share = np.clip((offset * axes).sum(-1) / np.maximum((axes**2).sum(-1), 1), 0, 1)
    result: FloatArray = np.linalg.norm(offset - share[..., None] * axes, axis=-1)
    return result


def _cover(pixels: FloatArray, background: FloatArray, tint: FloatArray) -> FloatArray:
    """How far each pixel is on the way from the background to `tint`, 0 where it is not on that way: (H, W)."""
    axis = tint - background
    length = max(float(axis @ axis), 1.0)
    share = (pixels - background) @ axis / length
    aside = np.linalg.norm(pixels - background - share[..., None] * axis, axis=-1)
    pure = np.clip(2 - aside / _IMPURITY, 0, 1)
    result: FloatArray = (np.clip(share, 0, 1) * pure).astype(np.float32)
    return result
