"""The protocols by which detectors and colour classifiers are plugged into GenEval, and what they return.

Detectors and colour classifiers are plain classes, chosen by class path; anything with these methods will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
from torch import Tensor

FloatArray: TypeAlias = npt.NDArray[np.float32]
IndexArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassDetections:
    """All detections of one class in one image, in detector order (not sorted).

    boxes: (n, 4) float32, x0 y0 x1 y1 in pixels, right and bottom exclusive; scores: (n,) float32.
    masks: (n, H, W) bool at image size, or None; colors: n colour names where the detector itself knows them, or None.

    Examples:
        >>> found = ClassDetections(boxes=[[0, 0, 8, 8], [4, 4, 9, 9]], scores=[0.9, 0.4])
        >>> len(found)
        2
    """

    boxes: FloatArray
    scores: FloatArray
    masks: npt.NDArray[np.bool_] | None = None
    colors: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, dtype=np.float32).reshape(-1, 4)
        scores = np.asarray(self.scores, dtype=np.float32).reshape(-1)
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "scores", scores)
        for name, value in (("scores", scores), ("masks", self.masks), ("colors", self.colors)):
            if value is not None and len(value) != len(boxes):
                raise ValueError(f"{len(boxes)} boxes but {len(value)} {name}")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError("a detector gave boxes or scores that are not finite (NaN or infinite)")

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, indices: IndexArray) -> ClassDetections:
        """The detections at `indices` (k,), in that order."""
        masks = None if self.masks is None else self.masks[indices]
        colors = None if self.colors is None else tuple(self.colors[i] for i in indices)
        return ClassDetections(self.boxes[indices], self.scores[indices], masks, colors)


def _none() -> ClassDetections:
    return ClassDetections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


@dataclass(frozen=True, slots=True)
class Detections:
    """Everything found in one image, class name -> detections. A class that is missing was not detected.

    Examples:
        >>> from hyperbagel.evaluation.geneval import ClassDetections
        >>> found = Detections({"circle": ClassDetections(boxes=[[0, 0, 8, 8]], scores=[0.9])})
        >>> len(found["circle"]), len(found["star"])
        (1, 0)
    """

    by_class: Mapping[str, ClassDetections] = field(default_factory=dict)

    def __getitem__(self, name: str) -> ClassDetections:
        found = self.by_class.get(name)
        return _none() if found is None else found


class Detector(Protocol):
    """Finds objects. `classes` are all the class names it can ever return.

    Examples:
        >>> from hyperbagel.evaluation.geneval.scene_detector import SceneDetector
        >>> "circle" in SceneDetector().classes  # one of them
        True
    """

    @property
    def classes(self) -> Sequence[str]:
        """All class names this detector can return."""
        ...

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Find the objects of each image (3, H, W) uint8; sizes may differ."""
        ...


class ColorClassifier(Protocol):
    """Names the colour of detected objects. `colors` are all the names it can ever return.

    Examples:
        >>> from hyperbagel.evaluation.geneval.protocol import names_colors
        >>> from hyperbagel.evaluation.geneval.scene_detector import SceneDetector
        >>> names_colors(SceneDetector())  # a detector may be one too
        True
    """

    @property
    def colors(self) -> Sequence[str]:
        """All colour names this classifier can return."""
        ...

    def classify(self, image: Tensor, class_name: str, found: ClassDetections) -> list[str]:
        """One colour name for each of `found`, objects of class `class_name` in `image` (3, H, W) uint8."""
        ...


def names_colors(detector: object) -> TypeGuard[ColorClassifier]:
    """Whether a detector is a colour classifier too."""
    return hasattr(detector, "colors") and callable(getattr(detector, "classify", None))
