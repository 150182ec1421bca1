"""The figures of one run of the editing benchmark, and what two runs differ by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hyperbagel.evaluation.gedit.aggregate import SampleResult, SetScores, aggregate
from hyperbagel.evaluation.gedit.samples import LANGUAGES
from hyperbagel.evaluation.statistics import Interval, difference_interval, mean_interval


@dataclass(frozen=True, slots=True)
class GEditReport:
    """The figures of one run; `scores` is language -> set -> scores. Never compare reports of different judges."""

    judge: str
    judge_version: str
    date: str
    model: str
    seed: int
    scores: Mapping[str, Mapping[str, SetScores]]
    rows: tuple[SampleResult, ...]

    def metrics(self) -> dict[str, float]:
        """For loggers: gedit/{sc,pq,o} of the first language (English if there), gedit/<language>/... of each.

        Full set. A figure that does not exist (a category without a scored sample) is left out; gedit/missing is not.
        """
        metrics = {"gedit/missing": float(sum(sets["full"].missing for sets in self.scores.values()))}
        languages = [language for language in LANGUAGES if language in self.scores]
        prefixes = {"gedit": languages[0]} if languages else {}
        for prefix, language in (prefixes | {f"gedit/{name}": name for name in languages}).items():
            if average := self.scores[language]["full"].average:
                metrics |= {f"{prefix}/sc": average.sc, f"{prefix}/pq": average.pq, f"{prefix}/o": average.o}
        return metrics

    def intervals(self) -> dict[str, Interval]:
        """Language -> average O of the full set with its 95 % confidence interval, where there is such an average."""
        scored = [row for row in self.rows if row.o is not None]
        return {
            language: mean_interval(
                [row.o for row in scored if row.language == language and row.o is not None],
                strata=[row.category for row in scored if row.language == language],
            )
            for language, sets in self.scores.items()
            if sets["full"].average
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; with the row of every sample."""
        return {
            "judge": {"name": self.judge, "version": self.judge_version, "date": self.date},
            "model": self.model,
            "seed": self.seed,
            "scores": {
                language: {name: scores.to_dict() for name, scores in sets.items()}
                for language, sets in self.scores.items()
            },
            "confidence": {
                language: {"O": interval.estimate, "low": interval.low, "high": interval.high}
                for language, interval in self.intervals().items()
            },
            "samples": [asdict(row) for row in self.rows],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GEditReport:
        """Inverse of `to_dict`; figures are computed anew. ValueError where a key is missing."""
        try:
            judge = data["judge"]
            identity = (judge["name"], judge["version"], judge["date"], data["model"], data["seed"])
            rows = tuple(
                SampleResult(**row | {"asked": tuple(row["asked"]), "reasons": tuple(row["reasons"])})
                for row in data["samples"]
            )
            categories = [name for sets in data["scores"].values() for name in sets["full"]["categories"]]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"not a GEdit report ({error}): judge, model, seed, scores and samples are needed"
            ) from error
        return cls(*identity, aggregate(rows, list(dict.fromkeys(categories))), rows)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences first - second of O over the full set, by language, with paired intervals; edits: how many pairs."""

    languages: dict[str, Interval]
    edits: int


def compare(first: GEditReport, second: GEditReport) -> Comparison:
    """Paired comparison over the edits that both runs have a score of.

    ValueError unless the same judge scored edits from the same seed and they share some: otherwise they are not paired.
    """
    for name in ("judge", "judge_version", "seed"):
        values = getattr(first, name), getattr(second, name)
        if values[0] != values[1]:
            raise ValueError(f"the runs can not be compared in pairs: {name} is {values[0]} and {values[1]}")
    scored = {(row.key, row.language): row.o for row in second.rows if row.o is not None}
    pairs = [
        (row, row.o, other)
        for row in first.rows
        if row.o is not None and (other := scored.get((row.key, row.language))) is not None
    ]
    if not pairs:
        raise ValueError("the runs can not be compared in pairs: they have no edit in common")
    languages = {}
    for language in sorted({row.language for row, _, _ in pairs}, key=LANGUAGES.index):
        own = [pair for pair in pairs if pair[0].language == language]
        strata = [row.category for row, _, _ in own]
        languages[language] = difference_interval([o for _, o, _ in own], [o for _, _, o in own], strata=strata)
    return Comparison(languages, len(pairs))
