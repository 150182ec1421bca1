"""Computes the published figures from the verdicts on samples.

For each language and set: plain means over the scored samples of a category, then the unweighted mean over the
categories. O is taken per sample, never from averages. Missing samples are in no mean, and always counted beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hyperbagel.evaluation.gedit.samples import EditSample, JudgeScore

SETS = ("full", "intersection")


@dataclass(frozen=True, slots=True)
class SampleResult:
    """The verdict on one sample; sc, pq and o are None where the sample is missing.

    reasons: why answers were invalid, as "sc:<reason>" and "pq:<reason>", or "no_image" where the edit gave none.
    """

    key: str
    category: str
    language: str
    intersection: bool
    sc: float | None
    pq: float | None
    o: float | None
    asked: tuple[int, int] = (0, 0)
    reasons: tuple[str, ...] = ()

    @property
    def missing(self) -> bool:
        """Whether the sample has no overall score and so is in no mean."""
        return self.o is None


@dataclass(frozen=True, slots=True)
class Scores:
    """Means of SC, PQ and O, each 0..10."""

    sc: float
    pq: float
    o: float

    def to_dict(self) -> dict[str, float]:
        """As the published names."""
        return {"SC": self.sc, "PQ": self.pq, "O": self.o}


@dataclass(frozen=True, slots=True)
class CategoryScores:
    """One category: n scored samples, the missing ones, and the means (None without a scored sample)."""

    n: int
    missing: int
    means: Scores | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the means are null where there are none."""
        means = self.means.to_dict() if self.means else dict.fromkeys(("SC", "PQ", "O"))
        return {"n": self.n, "missing": self.missing, **means}


@dataclass(frozen=True, slots=True)
class SetScores:
    """One language, one set. average: unweighted over all categories, None if any of them has no scored sample."""

    categories: Mapping[str, CategoryScores]
    average: Scores | None

    @property
    def n(self) -> int:
        """Number of scored samples."""
        return sum(scores.n for scores in self.categories.values())

    @property
    def missing(self) -> int:
        """Number of missing samples."""
        return sum(scores.missing for scores in self.categories.values())

    @property
    def empty_categories(self) -> list[str]:
        """The categories without a scored sample, because of which there is no average."""
        return [name for name, scores in self.categories.items() if scores.means is None]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "categories": {name: scores.to_dict() for name, scores in self.categories.items()},
            "average": self.average.to_dict() if self.average else None,
            "empty_categories": self.empty_categories,
            "n": self.n,
            "missing": self.missing,
        }


def sample_result(sample: EditSample, verdict: JudgeScore | None) -> SampleResult:
    """The row of one sample; `verdict` is None where there was no image to judge."""
    identity = (sample.key, sample.category, sample.language, sample.intersection)
    if verdict is None:
        return SampleResult(*identity, None, None, None, reasons=("no_image",))
    reasons = [f"sc:{reason}" for reason in verdict.consistency.reasons]
    reasons += [f"pq:{reason}" for reason in verdict.quality.reasons]
    asked = (verdict.consistency.asked, verdict.quality.asked)
    return SampleResult(*identity, verdict.sc, verdict.pq, verdict.o, asked, tuple(reasons))


def count_once(rows: Iterable[SampleResult]) -> list[SampleResult]:
    """One row for each (key, language): the first that has a score, else the first."""
    kept: dict[tuple[str, str], SampleResult] = {}
    for row in rows:
        known = kept.setdefault((row.key, row.language), row)
        if known.missing and not row.missing:
            kept[row.key, row.language] = row
    return list(kept.values())


def aggregate(rows: Iterable[SampleResult], categories: Sequence[str]) -> dict[str, dict[str, SetScores]]:
    """Language -> set -> scores, for the languages that occur.

    Raises ValueError for a row whose category is not one of `categories` (mind the hyphens in three official names).
    """
    rows = count_once(rows)
    if unknown := sorted({row.category for row in rows} - set(categories)):
        raise ValueError(f"categories {unknown} are not among {list(categories)}; correct the data or the settings")
    languages = dict.fromkeys(row.language for row in rows)
    return {
        language: {
            name: _set_scores(
                [row for row in rows if row.language == language and (row.intersection or name == "full")], categories
            )
            for name in SETS
        }
        for language in languages
    }


def _set_scores(rows: Sequence[SampleResult], categories: Sequence[str]) -> SetScores:
    by_category = {name: _category_scores([row for row in rows if row.category == name]) for name in categories}
    means = [scores.means for scores in by_category.values()]
    return SetScores(by_category, None if None in means else _mean([mean for mean in means if mean is not None]))


def _category_scores(rows: Sequence[SampleResult]) -> CategoryScores:
    scored = [
        Scores(row.sc, row.pq, row.o) for row in rows if row.sc is not None and row.pq is not None and row.o is not None
    ]
    return CategoryScores(len(scored), len(rows) - len(scored), _mean(scored))


def _mean(scores: Sequence[Scores]) -> Scores | None:
    if not scores:
        return None
    return Scores(fmean(s.sc for s in scores), fmean(s.pq for s in scores), fmean(s.o for s in scores))
