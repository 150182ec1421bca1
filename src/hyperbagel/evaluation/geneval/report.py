"""Reports of GenEval runs with confidence intervals, and the paired comparison of two runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hyperbagel.evaluation.geneval.summary import ScoredImage, Summary, summarize
from hyperbagel.evaluation.statistics import DEFAULT, BootstrapSettings, Interval, mean_interval
from hyperbagel.files import write_json


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The verdict on one image: which image of which prompt, its task, and the reasons against it (none = correct)."""

    prompt_index: int
    image_index: int
    tag: str
    metadata: str
    reasons: tuple[str, ...] = ()

    @property
    def correct(self) -> bool:
        """Whether nothing speaks against the image."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What was asked of the run. prompts: file name or description; seed: of the noise."""

    prompts: str
    prompts_sha256: str
    number_of_prompts: int
    images_per_prompt: int
    seed: int

    @property
    def expected_images(self) -> int:
        """How many images a complete run judges."""
        return self.number_of_prompts * self.images_per_prompt


@dataclass(frozen=True, slots=True)
class GenEvalReport:
    """Judged images and their figures. tasks, overall: scores with intervals from resampling prompts.

    Examples:
        >>> report.missing, report.metrics()["geneval/overall"]
        (0, 0.5)
    """

    info: RunInfo
    results: tuple[ImageResult, ...]
    summary: Summary
    tasks: dict[str, Interval]
    overall: Interval

    @property
    def missing(self) -> int:
        """How many images a complete run would have judged besides."""
        return self.info.expected_images - len(self.results)

    def metrics(self) -> dict[str, float]:
        """Scores under the metric names of all stages: geneval/<task> and geneval/overall."""
        return {f"geneval/{tag}": score.estimate for tag, score in self.tasks.items()} | {
            "geneval/overall": self.overall.estimate
        }

    def reasons(self) -> dict[str, dict[str, int]]:
        """How often each reason came up, by task."""
        counts: dict[str, Counter[str]] = {}
        for result in self.results:
            counts.setdefault(result.tag, Counter()).update(result.reasons)
        return {tag: dict(count) for tag, count in counts.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {
            "info": asdict(self.info),
            "missing": self.missing,
            "summary": self.summary.to_dict(),
            "overall": asdict(self.overall),
            "tasks": {tag: asdict(interval) for tag, interval in self.tasks.items()},
            "reasons": self.reasons(),
            "images": [asdict(result) for result in self.results],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GenEvalReport:
        """Inverse of `to_dict`; figures are computed anew. ValueError where a key is missing."""
        try:
            info = RunInfo(**data["info"])
            results = [ImageResult(**{**row, "reasons": tuple(row["reasons"])}) for row in data["images"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a GenEval report ({error}): keys info and images are needed") from error
        return build_report(results, info)

    def lines(self) -> list[str]:
        """The official summary, each score with its interval, and what it is a score of."""
        tasks = [f"{tag:<16} {interval}" for tag, interval in self.tasks.items()]
        source = f"prompts: {self.info.prompts} ({self.info.number_of_prompts}, sha256 {self.info.prompts_sha256[:12]})"
        missing = [f"MISSING: {self.missing} of {self.info.expected_images} images"] if self.missing else []
        return [
            *self.summary.lines(),
            "With confidence intervals",
            *tasks,
            f"{'overall':<16} {self.overall}",
            source,
            *missing,
        ]

    def save(self, path: Path | str) -> None:
        """Write the report as JSON."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path | str) -> GenEvalReport:
        """Read a report that `save` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences first - second on the same prompts and noise, with paired intervals; images: how many pairs.

    Examples:
        >>> from hyperbagel.evaluation.geneval import compare
        >>> compare(report, report).images
        2
    """

    overall: Interval
    tasks: dict[str, Interval]
    images: int


def build_report(results: Iterable[ImageResult], info: RunInfo, settings: BootstrapSettings = DEFAULT) -> GenEvalReport:
    """Figures of judged images, in whatever order they come. ValueError for none, or for an image judged twice.

    Examples:
        >>> from hyperbagel.evaluation.geneval.report import ImageResult, RunInfo
        >>> results = [ImageResult(0, 0, "colors", "{}"), ImageResult(0, 1, "colors", "{}", ("no circle",))]
        >>> build_report(results, RunInfo("mine", "", 1, 2, 0)).overall.estimate
        0.5
    """
    ordered = sorted(results, key=lambda one: (one.prompt_index, one.image_index))
    keys = [(one.prompt_index, one.image_index) for one in ordered]
    if len(set(keys)) < len(keys):
        prompt, image = Counter(keys).most_common(1)[0][0]
        raise ValueError(f"image {image} of prompt {prompt} was judged twice")
    summary = summarize(ScoredImage(one.tag, one.metadata, one.correct) for one in ordered)
    tasks, overall = _intervals(ordered, [float(one.correct) for one in ordered], settings)
    return GenEvalReport(info, tuple(ordered), summary, tasks, overall)


def compare(first: GenEvalReport, second: GenEvalReport, settings: BootstrapSettings = DEFAULT) -> Comparison:
    """Paired comparison over the images that both runs have.

    ValueError unless both ran the same prompts from the same seed and share images: otherwise they are not paired.

    Examples:
        >>> compare(report, report).overall.estimate
        0.0
    """
    for name in ("prompts_sha256", "seed"):
        values = getattr(first.info, name), getattr(second.info, name)
        if values[0] != values[1]:
            raise ValueError(f"the runs can not be compared in pairs: {name} is {values[0]} and {values[1]}")
    other = {(one.prompt_index, one.image_index): one for one in second.results}
    pairs = [(one, other[key]) for one in first.results if (key := (one.prompt_index, one.image_index)) in other]
    if not pairs:
        raise ValueError("the runs can not be compared in pairs: they have no image in common")
    gains = [float(one.correct) - float(two.correct) for one, two in pairs]
    tasks, overall = _intervals([one for one, _ in pairs], gains, settings)
    return Comparison(overall, tasks, len(pairs))


def _intervals(
    images: Sequence[ImageResult], values: Sequence[float], settings: BootstrapSettings
) -> tuple[dict[str, Interval], Interval]:
    """Intervals of the tasks' means of `values`, one per image, and of their mean; prompts are resampled."""
    tasks = {}
    for tag in dict.fromkeys(image.tag for image in images):
        own = [index for index, image in enumerate(images) if image.tag == tag]
        units = [images[index].metadata for index in own]
        tasks[tag] = mean_interval([values[index] for index in own], units, settings=settings)
    units = [image.metadata for image in images]
    return tasks, mean_interval(values, units, [image.tag for image in images], settings)
