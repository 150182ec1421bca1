"""Rules that the golden cases can not show: which boxes the classifier is asked about, and options off the defaults."""

from __future__ import annotations

import numpy as np
import pytest

from hyperbagel.evaluation.geneval.prompts import parse_prompt
from hyperbagel.evaluation.geneval.protocol import ClassDetections, Detections
from hyperbagel.evaluation.geneval.rules import RuleSettings, judge, keep, relations


def detections(*scores: float) -> ClassDetections:
    boxes = [[10 * index, 0, 10 * index + 9, 9] for index in range(len(scores))]
    return ClassDetections(np.array(boxes), np.array(scores))


def test_the_classifier_sees_only_the_best_boxes_of_clauses_with_a_colour() -> None:
    asked: list[tuple[str, list[float]]] = []

    def classify(name: str, found: ClassDetections) -> list[str]:
        asked.append((name, found.boxes[:, 0].tolist()))
        return ["red"] * len(found)

    include = [
        {"class": "dog", "count": 2, "color": "red"},
        {"class": "cat", "count": 1},
        {"class": "cow", "count": 9, "color": "red"},
    ]
    prompt = parse_prompt({"tag": "colors", "include": include, "prompt": "-"})
    found = Detections({name: detections(0.5, 0.9, 0.2, 0.9) for name in ("dog", "cat", "cow")})
    verdict = judge(prompt, found, classify)
    assert asked == [
        ("dog", [30.0, 10.0])
    ]  # of equal scores the later one comes first; too few cows are not asked about
    assert [str(reason) for reason in verdict.reasons] == ["too_few"]


def test_masks_and_colours_follow_their_boxes() -> None:
    masks = np.arange(3)[:, None, None] == np.ones((1, 2, 2))
    found = ClassDetections(np.zeros((3, 4)), np.array([0.4, 0.9, 0.5]), masks, ("red", "blue", "pink"))
    kept = keep(found, 0.3)
    assert kept.colors == ("blue", "pink", "red")
    assert kept.masks is not None
    assert kept.masks[:, 0, 0].tolist() == [True, False, False]


@pytest.mark.parametrize(("max_overlap", "kept"), [(1.0, 3), (0.5, 2), (0.01, 1)])
def test_overlap_limit_drops_the_less_confident_box(max_overlap: float, kept: int) -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 1, 9, 10], [0, 9, 9, 18]])
    found = ClassDetections(boxes, np.array([0.9, 0.8, 0.7]))
    result = keep(found, 0.3, RuleSettings(max_overlap=max_overlap))
    assert len(result) == kept
    assert result.scores[0] == np.float32(0.9)


def test_a_pair_can_have_two_relations_or_none() -> None:
    def box(x: float, y: float) -> np.ndarray:
        return np.array([x - 1, y - 1, x + 1, y + 1], np.float32)

    assert relations(box(-10, -10), box(0, 0)) == {"left of", "above"}
    assert relations(box(0, 0), box(0, 0)) == frozenset()
    assert relations(box(10, 1), box(0, 0)) == {"right of"}
    assert relations(box(10, 1), box(0, 0), margin=4) == frozenset()


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 boxes but 1 scores"):
        ClassDetections(np.zeros((2, 4)), np.zeros(1))
