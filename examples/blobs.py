"""A GenEval detector of one's own: shapes by how much of their box they fill, colours by the strongest channel."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from torch import Tensor

from hyperbagel.evaluation.geneval import ClassDetections, Detections


class Blobs:
    """Takes each connected area that differs from the corner's colour for a square if it fills its box, else a circle.

    Args:
        smallest: fewest pixels of an object.
    """

    classes = ("circle", "square")
    colors = ("red", "green", "blue")

    def __init__(self, smallest: int = 20) -> None:
        self.smallest = smallest

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """The objects of each image (3, H, W) uint8; equal scores, in reading order."""
        return [self._detect(image.numpy().astype(int)) for image in images]

    def classify(self, image: Tensor, class_name: str, found: ClassDetections) -> list[str]:
        """The strongest channel in the middle of each box; a detector without this needs a colour classifier beside."""
        middles = ((found.boxes[:, :2] + found.boxes[:, 2:]) / 2).astype(int).tolist()
        return [self.colors[int(image[:, y, x].argmax())] for x, y in middles]

    def _detect(self, image: np.ndarray) -> Detections:
        areas, _ = ndimage.label(abs(image - image[:, :1, :1]).sum(0) > 90)
        boxes: dict[str, list[tuple[int, int, int, int]]] = {name: [] for name in self.classes}
        for number, (rows, columns) in enumerate(ndimage.find_objects(areas), start=1):
            filled = areas[rows, columns] == number
            if filled.sum() >= self.smallest:
                name = "square" if filled.mean() > 0.9 else "circle"
                boxes[name].append((columns.start, rows.start, columns.stop, rows.stop))
        return Detections({name: ClassDetections(np.array(b), np.ones(len(b))) for name, b in boxes.items() if b})
