"""Samples and verdicts of the editing benchmark, and the two protocols by which judges are plugged in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from PIL import Image

OFFICIAL_CATEGORIES = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)
LANGUAGES = ("en", "cn")


@dataclass(frozen=True, slots=True)
class EditSample:
    """One edit to perform and to judge.

    key: name of the edit, the same in every language; (key, language) is unique.
    category: `task_type` of the official data, or the kind of edit of another world.
    language: language of the instruction, "en" or "cn".
    source: the image to edit, the one that the result is judged against.
    intersection: whether the sample belongs to the intersection set.
    meta: what only exact judges look at, e.g. the scenes that were drawn.
    """

    key: str
    category: str
    language: str
    instruction: str
    source: Image.Image
    intersection: bool = True
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rating:
    """The answer to one question: its scores (0..10), or none; the smallest score counts.

    asked: how many answers were read; reasons: why the answers before (or all of them) were invalid. Raises ValueError
    for scores outside of the range, or that are no numbers.
    """

    scores: tuple[float, ...] = ()
    asked: int = 1
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if wrong := [score for score in self.scores if not 0 <= score <= 10]:
            raise ValueError(f"a judge's scores go from 0 to 10, got {wrong[0]}")

    @property
    def value(self) -> float | None:
        """The score that counts, None if there is none."""
        return min(self.scores, default=None)


@dataclass(frozen=True, slots=True)
class JudgeScore:
    """A judge's verdict on one edit: semantic consistency (SC) and perceptual quality (PQ), each possibly absent."""

    consistency: Rating
    quality: Rating

    @property
    def sc(self) -> float | None:
        """Semantic consistency, 0..10."""
        return self.consistency.value

    @property
    def pq(self) -> float | None:
        """Perceptual quality, 0..10."""
        return self.quality.value

    @property
    def o(self) -> float | None:
        """Overall score sqrt(SC * PQ), 0..10; None (the sample is missing) if either is absent."""
        if self.sc is None or self.pq is None:
            return None
        return math.sqrt(self.sc * self.pq)


class Judge(Protocol):
    """Scores one edit from what a viewer sees. Chosen by class path.

    Attributes `name` and `version` (strings) go into the report if the judge has them. They matter: figures of
    different judges must not be mixed.

    Examples:
        >>> from PIL import Image
        >>> from hyperbagel.evaluation.gedit.samples import JudgeScore, Rating
        >>> class Same:
        ...     name, version = "same", "1"
        ...
        ...     def score(self, instruction: str, source: Image.Image, edited: Image.Image) -> JudgeScore:
        ...         return JudgeScore(Rating((10.0 * (source == edited),)), Rating((10.0,)))
        ...
        >>> picture = Image.new("RGB", (8, 8))
        >>> Same().score("Leave it.", picture, picture).o
        10.0
    """

    def score(self, instruction: str, source: Image.Image, edited: Image.Image) -> JudgeScore:
        """The verdict on `edited`, made from `source` by `instruction`."""
        ...


@runtime_checkable
class ExactJudge(Protocol):
    """A judge that needs more than a viewer sees: the sample's `meta`. Preferred over `score` where it exists."""

    def score_sample(self, sample: EditSample, edited: Image.Image) -> JudgeScore:
        """The verdict on `edited`, made for `sample`. Raises ValueError if `sample.meta` lacks what it needs."""
        ...
