"""The official GenEval verdict on one image, with its reasons, as a pure function of what was detected.

Every detail counts for comparability with published scores: numbers are float32, equal scores are ordered as a stable
ascending sort read backwards, only the `count` most confident boxes of a class are looked at, all comparisons are
strict, and the colour classifier is asked only where a clause wants a colour and has enough boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np

from hyperbagel.evaluation.geneval.prompts import COUNTING, GenEvalPrompt, Include
from hyperbagel.evaluation.geneval.protocol import ClassDetections, Detections, FloatArray, IndexArray

Classify: TypeAlias = Callable[[str, ClassDetections], Sequence[str]]


class Reason(StrEnum):
    """Why an image is wrong, in the categories of the official script."""

    TOO_FEW = "too_few"
    WRONG_COLOR = "wrong_color"
    NO_TARGET = "no_target"
    WRONG_POSITION = "wrong_position"
    TOO_MANY = "too_many"


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """The official options; every figure ever published uses these defaults."""

    threshold: float = 0.3
    """A box counts when its score is strictly greater."""
    counting_threshold: float = 0.9
    """The threshold for task `counting`."""
    max_objects: int = 16
    """Most boxes kept per class."""
    max_overlap: float = 1.0
    """From this IoU on the less confident box of a class is dropped; 1: never."""
    position_margin: float = 0.1
    """Share of the summed box sizes that an offset must exceed to count as a relation."""


OFFICIAL = RuleSettings()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The reasons against an image, in the order they arise; none = correct."""

    reasons: tuple[Reason, ...] = ()

    @property
    def correct(self) -> bool:
        """Whether nothing speaks against the image."""
        return not self.reasons


def judge(
    prompt: GenEvalPrompt, detections: Detections, classify: Classify, settings: RuleSettings = OFFICIAL
) -> Verdict:
    """Judge one image.

    classify(class name, k detections) -> k colour names; it is called only where the rules ask for a colour.
    """
    threshold = settings.counting_threshold if prompt.tag == COUNTING else settings.threshold
    reasons: list[Reason] = []
    matched: list[FloatArray | None] = []
    for clause in prompt.include:
        kept = keep(detections[clause.class_name], threshold, settings)
        reason = _clause_fault(clause, kept, matched, classify, settings)
        matched.append(kept.boxes[: clause.count] if reason is None else None)
        if reason is not None:
            reasons.append(reason)
    for limit in prompt.exclude:
        if len(keep(detections[limit.class_name], threshold, settings)) >= limit.count:
            reasons.append(Reason.TOO_MANY)
    return Verdict(tuple(reasons))


def keep(found: ClassDetections, threshold: float, settings: RuleSettings = OFFICIAL) -> ClassDetections:
    """The boxes of one class that count, best first."""
    order = np.argsort(found.scores, kind="stable")[::-1]
    order = order[found.scores[order] > np.float32(threshold)][: settings.max_objects]
    if settings.max_overlap < 1:
        order = _suppress(found.boxes, order, settings.max_overlap)
    return found.take(order)


def relations(a: FloatArray, b: FloatArray, margin: float = OFFICIAL.position_margin) -> frozenset[str]:
    """Where box a (4,) lies relative to box b (4,); none, one or two of left of, right of, above, below.

    The direction is measured along the full offset of the centres, the margin only taken off its components.
    """
    corners = np.stack([a, b]).astype(np.float32).reshape(2, 2, 2)
    center_a, center_b = corners.mean(axis=1)
    size_a, size_b = np.abs(corners[:, 1] - corners[:, 0])
    offset = center_a - center_b
    beyond = np.sign(offset) * np.maximum(np.abs(offset) - np.float32(margin) * (size_a + size_b), np.float32(0))
    if np.all(np.abs(beyond) < 1e-3):
        return frozenset()
    dx, dy = beyond / np.linalg.norm(offset)
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return frozenset(name for name, holds in held.items() if holds)


def _clause_fault(
    clause: Include,
    kept: ClassDetections,
    matched: Sequence[FloatArray | None],
    classify: Classify,
    settings: RuleSettings,
) -> Reason | None:
    """What is wrong with one include clause. matched: the boxes of each earlier clause, None where it failed."""
    if len(kept) < clause.count:
        return Reason.TOO_FEW
    found = kept.take(np.arange(clause.count))
    if clause.color is not None and any(color != clause.color for color in classify(clause.class_name, found)):
        return Reason.WRONG_COLOR
    if clause.position is None:
        return None
    target = matched[clause.position.target]
    if target is None:
        return Reason.NO_TARGET
    for box in found.boxes:
        for other in target:
            if clause.position.relation not in relations(box, other, settings.position_margin):
                return Reason.WRONG_POSITION
    return None


def _suppress(boxes: FloatArray, order: IndexArray, max_overlap: float) -> IndexArray:
    """Drop from `order` (best first) every box whose IoU with a better kept one is >= max_overlap."""
    kept: list[int] = []
    for index in order:
        if all(_pixel_iou(boxes[index], boxes[better]) < max_overlap for better in kept):
            kept.append(int(index))
    return np.array(kept, dtype=np.int64)


def _pixel_iou(a: FloatArray, b: FloatArray) -> float:
    """IoU in the convention that a box from 0 to 9 is 10 pixels wide."""
    inner = _pixel_area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])]))
    union = _pixel_area(a) + _pixel_area(b) - inner
    return inner / union if union else 0.0


def _pixel_area(box: FloatArray) -> float:
    width, height = np.maximum(box[2:] - box[:2] + 1, 0)
    return float(width * height)
