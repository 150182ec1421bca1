"""The exact detector of the scenes world, as a GenEval detector: shapes are the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from hyperbagel.evaluation.geneval.protocol import ClassDetections, Detections
from hyperbagel.evaluation.geneval.scene_parser import parse_scene
from hyperbagel.scenes.palette import COLORS, SHAPES


class SceneDetector:
    """Finds the shapes of the scenes world and their colours by `parse_scene`. It is its own colour classifier."""

    classes: tuple[str, ...] = SHAPES
    colors: tuple[str, ...] = tuple(COLORS)

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """The shapes in each image (3, H, W) uint8, with their colours."""
        return [_detections(image) for image in images]

    def classify(self, image: Tensor, class_name: str, found: ClassDetections) -> list[str]:
        """The colours that `detect` reported. ValueError if another detector found these objects."""
        if found.colors is None:
            raise ValueError(f"the {class_name} boxes carry no colours: they are not of the scene detector")
        return list(found.colors)


def _detections(image: Tensor) -> Detections:
    by_shape: dict[str, ClassDetections] = {}
    objects = parse_scene(image).objects
    for shape in dict.fromkeys(one.shape for one in objects):
        own = [one for one in objects if one.shape == shape]
        boxes = np.array([one.box for one in own], np.float32)
        scores = np.array([one.score for one in own], np.float32)
        by_shape[shape] = ClassDetections(boxes, scores, colors=tuple(one.color for one in own))
    return Detections(by_shape)
