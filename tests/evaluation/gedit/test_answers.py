"""What the golden cases do not reach: hostile texts."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbagel.evaluation.gedit.answers import DELIMITER, InvalidReason, read_answer

PIECES = ['{"score": [7, 8]', '"score":', "'score': 3,", "score: [", "]", "}", "{", "[", ",", "4", "-1", "1e999", "NaN",
          '"', "\\", "\n", "```json", "```", DELIMITER, "null", '"reasoning": "x"', "分数", "\x00"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=12).map("".join))
def test_never_raises_and_scores_are_always_in_range(text: str) -> None:
    answer = read_answer(text)
    assert answer.ok == bool(answer.scores)
    assert all(0 <= score <= 10 for score in answer.scores)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 10) | st.integers(0, 10), min_size=1, max_size=3), st.text())
def test_any_proper_object_is_read_whatever_surrounds_its_scores(scores: list[float], reasoning: str) -> None:
    answer = read_answer("Here: " + json.dumps({"score": scores, "reasoning": reasoning}))
    assert answer.scores == tuple(scores) or reasoning.count(DELIMITER) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"score": ' + "9" * 5000 + "}", InvalidReason.OUT_OF_RANGE),
        ('{"score": "' + "9" * 400 + '"}', InvalidReason.OUT_OF_RANGE),
        ('{"score": 1' + "0" * 400 + "}", InvalidReason.OUT_OF_RANGE),
        ('{"score": 1e400}', InvalidReason.NOT_A_NUMBER),
        ('{"score": ' + "[" * 20000, InvalidReason.NO_SCORE),
        ("[" + "9" * 5000 + ", 1]", InvalidReason.OUT_OF_RANGE),
        ('{"score": [7, "+8"]}', InvalidReason.NOT_A_NUMBER),
        (f"{DELIMITER} {DELIMITER}", InvalidReason.NO_SCORE),
        ('{"a": {"score": [1, 2]}, "b": {"score": [2, 1]}}', InvalidReason.AMBIGUOUS),
    ],
    ids=["long number", "long string", "big number", "infinity", "deep", "long list", "signed string", "nothing",
         "nested differ"],
)  # fmt: skip
def test_hostile(text: str, reason: InvalidReason) -> None:
    assert read_answer(text).reason is reason
