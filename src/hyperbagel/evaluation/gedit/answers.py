"""Reading the scores out of one judge answer.

Wherever the published VIEScore parser reads a proper answer, this one reads the same scores. Where that one guesses
at random, asks for ever or accepts nonsense, the answer is `invalid` here, with a reason: nothing is ever guessed,
clamped or repaired beyond what the answer plainly says.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

DELIMITER = "||V^=^V||"
RATE_LIMIT_TEXT = "rate_limit_exceeded"
SCORE_RANGE = (0, 10)

_DECODER = json.JSONDecoder(strict=False)  # not strict: raw control characters inside strings are allowed
_NUMBER = r"[+-]?[0-9]+(?:\.[0-9]+)?"
_PLAIN_NUMBER = re.compile(_NUMBER)
_UNSIGNED_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_SCORE_IN_BROKEN_JSON = re.compile(
    r"""(?:"score"|'score'|(?<=[{,])\s*score)\s*:\s*(?:(?P<list>\[[^\[\]]*\])|(?P<number>"""
    + _NUMBER
    + r""")\s*[,}])"""
)
_FENCE = re.compile(r"```[A-Za-z]*\s*(?P<body>.*?)\s*```", re.DOTALL)
_BARE_PAIR = re.compile(rf"\[\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\]")
_BARE_DIGITS = re.compile(r"[0-9]+")


class InvalidReason(StrEnum):
    """Why an answer has no usable scores."""

    EMPTY = "empty"
    TRANSPORT = "transport"
    AMBIGUOUS = "ambiguous"
    NO_SCORE = "no_score"
    NOT_A_NUMBER = "not_a_number"
    EMPTY_LIST = "empty_list"
    OUT_OF_RANGE = "out_of_range"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, read: either `scores` (never empty, each in 0..10) or the `reason` why there are none."""

    scores: tuple[float, ...] = ()
    reason: InvalidReason | None = None

    @property
    def ok(self) -> bool:
        """Whether scores were read."""
        return self.reason is None


def read_answer(text: str) -> Answer:
    """Read the scores of one judge answer. Never raises on any text."""
    if not text.strip():
        return Answer(reason=InvalidReason.EMPTY)
    if text.strip() == RATE_LIMIT_TEXT:
        return Answer(reason=InvalidReason.TRANSPORT)
    if text.count(DELIMITER) == 2:
        text = text.split(DELIMITER)[1]
    return _read_objects(text) or _read_broken_json(text) or _read_bare(text)


def _read_objects(text: str) -> Answer | None:
    """The `score` of the JSON objects in the text; None if no object has that key at its top level."""
    values = []
    start = text.find("{")
    while start >= 0:
        try:
            decoded, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            if "score" in decoded:
                values.append(decoded["score"])
        start = text.find("{", end)
    if not values:
        return None
    if any(value != values[0] for value in values):
        return Answer(reason=InvalidReason.AMBIGUOUS)
    return _check(values[0])


def _read_broken_json(text: str) -> Answer | None:
    """The score of cut-off, malformed or nested JSON, if it is plain to see; None if nothing looks like one."""
    matches = list(_SCORE_IN_BROKEN_JSON.finditer(text))
    if not matches:
        return None
    if len({re.sub(r"\s", "", match["list"] or match["number"]) for match in matches}) > 1:
        return Answer(reason=InvalidReason.AMBIGUOUS)
    if matches[0]["list"] is None:
        return _check_range([float(matches[0]["number"])])
    inner = matches[0]["list"][1:-1]
    if not inner.strip():
        return Answer(reason=InvalidReason.EMPTY_LIST)
    items = [item.strip(" \t\r\n\"'") for item in inner.split(",")]
    if not all(_PLAIN_NUMBER.fullmatch(item) for item in items):
        return Answer(reason=InvalidReason.NOT_A_NUMBER)
    return _check_range([float(item) for item in items])


def _read_bare(text: str) -> Answer:
    """An answer that is nothing but a list of two numbers, or a whole number."""
    text = text.strip()
    if fenced := _FENCE.fullmatch(text):
        text = fenced["body"]
    if pair := _BARE_PAIR.fullmatch(text):
        return _check_range([float(number) for number in pair.groups()])
    if _BARE_DIGITS.fullmatch(text):
        return _check_range([float(text)])
    return Answer(reason=InvalidReason.NO_SCORE)


def _check(value: Any) -> Answer:
    """Check a decoded JSON value: a number, a number in a string, or a list of these."""
    items = value if isinstance(value, list) else [value]
    if not items:
        return Answer(reason=InvalidReason.EMPTY_LIST)
    numbers = [_number(item) for item in items]
    if None in numbers:
        return Answer(reason=InvalidReason.NOT_A_NUMBER)
    return _check_range([number for number in numbers if number is not None])


def _number(item: Any) -> float | None:
    if isinstance(item, bool):
        return None
    if isinstance(item, int):
        return item
    if isinstance(item, float):
        return item if math.isfinite(item) else None
    if isinstance(item, str) and _UNSIGNED_NUMBER.fullmatch(item.strip()):
        return float(item)
    return None


def _check_range(numbers: Sequence[float]) -> Answer:
    low, high = SCORE_RANGE
    if not all(low <= number <= high for number in numbers):
        return Answer(reason=InvalidReason.OUT_OF_RANGE)
    return Answer(scores=tuple(float(number) for number in numbers))
