"""Reads an edited picture of the scenes world: its objects, its free background, and how cleanly it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hyperbagel.evaluation.geneval.scene_parser import FoundObject, ParsedScene, parse_scene
from hyperbagel.scenes.drawing import coverage
from hyperbagel.scenes.palette import BACKGROUNDS, COLORS

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

IS_OBJECT = 0.6
"""Least score of the parser at which a region counts as an object when changes are looked for."""
CLEAN_SHAPE, NO_SHAPE = 0.9, 0.3
"""Scores of the parser at which a shape gets 10 and 0 points."""
TINT_TOLERANCE = 40.0
"""Euclidean RGB distance (of 1/255) within which a pixel has a given background colour."""
PIXEL_TOLERANCE = 32.0
"""Largest channel difference (of 255) of a pixel to the clean drawing, edges up to one pixel aside allowed."""
ARTIFACT_SLOPE = 3.0
"""With 1 / ARTIFACT_SLOPE of the objects' area wrong the picture gets 0 points."""
LEAST_AREA = 0.05
"""Share of the picture that its objects are taken to cover at least: a speck on an empty one is not everything."""
_RIM = 2
_TOO_FEW = 12


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture read back. objects: those found; free: (H, W) pixels away from them; shapes, artifacts: 0..10 each.

    pixels: (H, W, 3); smooth: (H, W, 3) mean colour of the free pixels around each pixel; background_rgb: (3,), the
    picture's own.
    """

    objects: tuple[FoundObject, ...]
    pixels: FloatArray
    free: Mask
    smooth: FloatArray
    background_rgb: FloatArray
    shapes: float
    artifacts: float

    def cleared(self, where: Mask) -> float:
        """Share of the free pixels of `where` (H, W) that have the picture's own background colour; 1 if too few."""
        return self._share(self._near(self.background_rgb), where)

    def tinted(self, background: str) -> float:
        """Share of all free pixels whose colour is that background of the palette, and nearer to no other."""
        distances = np.stack(
            [np.linalg.norm(self.smooth - np.array(rgb, np.float32), axis=-1) for rgb in BACKGROUNDS.values()]
        )
        nearest = distances.argmin(0) == list(BACKGROUNDS).index(background)
        return self._share(nearest & self._near(np.array(BACKGROUNDS[background], np.float32)), np.True_)

    def _near(self, rgb: FloatArray) -> Mask:
        near: Mask = np.linalg.norm(self.pixels - rgb, axis=-1) < TINT_TOLERANCE
        return near

    def _share(self, holds: Mask, where: Mask | np.bool_) -> float:
        pixels = self.free & where
        return float(holds[pixels].mean()) if np.count_nonzero(pixels) >= _TOO_FEW else 1.0


def read_picture(pixels: npt.NDArray[np.uint8]) -> Picture:
    """Read a picture (H, W, 3) uint8."""
    parsed, real = parse_scene(pixels), pixels.astype(np.float32)
    objects = tuple(found for found in parsed.objects if found.score >= IS_OBJECT)
    free = ~ndimage.binary_dilation(_covered(objects, pixels.shape[:2]) > 0, iterations=_RIM)
    return Picture(
        objects=objects,
        free=free,
        pixels=real,
        smooth=_smooth(real, free),
        background_rgb=np.array(parsed.background_rgb, np.float32),
        shapes=_shape_points(parsed.objects),
        artifacts=_artifact_points(real, parsed),
    )


def disc(x: float, y: float, radius: float, size: tuple[int, int]) -> Mask:
    """(H, W) pixels whose centre is within `radius` of (x, y)."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    inside: Mask = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2
    return inside


def _alpha(item: FoundObject, size: tuple[int, int]) -> FloatArray:
    """(H, W) share of each pixel that an object covers; what lies beyond the picture is cut off."""
    left, top = floor(item.x), floor(item.y)
    drawn = coverage(item.shape, item.radius, item.x - left, item.y - top)
    n = drawn.shape[0] // 2
    canvas = np.zeros((size[0] + 4 * n, size[1] + 4 * n), np.float32)
    canvas[top + n : top + 3 * n, left + n : left + 3 * n] = drawn
    return canvas[2 * n : 2 * n + size[0], 2 * n : 2 * n + size[1]]


def _covered(objects: Sequence[FoundObject], size: tuple[int, int]) -> FloatArray:
    covered = np.zeros(size, np.float32)
    for item in objects:
        covered = np.maximum(covered, _alpha(item, size))
    return covered


def _smooth(pixels: FloatArray, free: Mask) -> FloatArray:
    """Mean colour of the free pixels in the 5x5 around each pixel; the pixel's own where there are none."""
    weight = ndimage.uniform_filter(free.astype(np.float32), 5)[..., None]
    total = ndimage.uniform_filter(pixels * free[..., None], (5, 5, 1))
    mean: FloatArray = np.where(weight > 0.01, total / np.maximum(weight, 0.01), pixels)
    return mean


def _shape_points(objects: Sequence[FoundObject]) -> float:
    """Mean over everything that stands out from the background: 10 for a clean shape, 0 for none of the world's."""
    if not objects:
        return 10.0
    points = [(found.score - NO_SHAPE) / (CLEAN_SHAPE - NO_SHAPE) for found in objects]
    return 10 * float(np.clip(points, 0, 1).mean())


def _artifact_points(pixels: FloatArray, parsed: ParsedScene) -> float:
    """10 where the picture is the clean drawing of what was read from it, 0 where a third of that is wrong."""
    size = (pixels.shape[0], pixels.shape[1])
    drawing = np.empty_like(pixels)
    drawing[:] = parsed.background_rgb
    for item in parsed.objects:
        drawing += _alpha(item, size)[..., None] * (np.array(COLORS[item.color], np.float32) - drawing)
    # An edge may lie up to a pixel aside, or be as soft as that: any colour between those of the neighbours is right.
    low, high = ndimage.minimum_filter(drawing, (3, 3, 1)), ndimage.maximum_filter(drawing, (3, 3, 1))
    distance = np.maximum(low - pixels, pixels - high).max(-1)
    area = max(float(_covered(parsed.objects, size).sum()), LEAST_AREA * size[0] * size[1])
    wrong = np.count_nonzero(distance > PIXEL_TOLERANCE) / area
    return 10 * float(np.clip(1 - ARTIFACT_SLOPE * wrong, 0, 1))
