"""Runs GenEval: generate N images per prompt from keyed noise, judge them, and report scores with intervals.

`evaluate` does it all. Several processes share the work by `jobs`, `judge_jobs` on a slice each, and `build_report`
on the gathered results; the report does not depend on how the work was split.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
from torch import Tensor
from tqdm import tqdm

from hyperbagel.evaluation.geneval.prompts import GenEvalPrompt, PromptSet
from hyperbagel.evaluation.geneval.protocol import ColorClassifier, Detector, names_colors
from hyperbagel.evaluation.geneval.report import GenEvalReport, ImageResult, RunInfo, build_report
from hyperbagel.evaluation.geneval.rules import RuleSettings, Verdict, judge
from hyperbagel.evaluation.statistics import BootstrapSettings

log = logging.getLogger(__name__)

Generate: TypeAlias = Callable[[Sequence[str], Sequence[int]], Sequence[Tensor | None]]
"""generate(prompts, seeds) -> one image (3, H, W) uint8 each, drawn from noise of that seed; None where it failed."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How images are drawn and judged.

    Examples:
        >>> RunSettings(images_per_prompt=2).batch_size
        16
    """

    images_per_prompt: int = 4
    """Images of each prompt; 4 officially."""
    batch_size: int = 16
    """Images per call of `generate`."""
    seed: int = 0
    """Seed of all noise."""
    rules: RuleSettings = field(default_factory=RuleSettings)
    """When an image is right."""
    intervals: BootstrapSettings = field(default_factory=BootstrapSettings)
    """How confidence intervals are computed."""

    def __post_init__(self) -> None:
        if self.images_per_prompt < 1 or self.batch_size < 1:
            raise ValueError("images_per_prompt and batch_size must be at least 1")


class Job(NamedTuple):
    """One image to generate and judge."""

    prompt_index: int
    image_index: int
    seed: int


class Scorer:
    """Judges images of prompts with a detector and a colour classifier (the detector itself, if it is one).

    ValueError when the detector reports no colours and there is no classifier.

    Examples:
        >>> from hyperbagel.evaluation.geneval.scene_detector import SceneDetector
        >>> scorer = Scorer(SceneDetector())
        >>> scorer.color_classifier is scorer.detector
        True
    """

    def __init__(
        self, detector: Detector, color_classifier: ColorClassifier | None = None, rules: RuleSettings | None = None
    ) -> None:
        if color_classifier is None:
            if not names_colors(detector):
                raise ValueError(f"{type(detector).__name__} names no colours: give a colour classifier too")
            color_classifier = detector
        self.detector = detector
        self.color_classifier = color_classifier
        self.rules = rules or RuleSettings()

    def check(self, prompts: Sequence[GenEvalPrompt]) -> None:
        """ValueError when a prompt asks for a class or a colour that could never be found."""
        for kind, known, wanted in (
            ("class", self.detector.classes, [prompt.classes for prompt in prompts]),
            ("colour", self.color_classifier.colors, [prompt.colors for prompt in prompts]),
        ):
            unknown = sorted(frozenset[str]().union(*wanted) - frozenset(known))
            if unknown:
                names = ", ".join(known)
                raise ValueError(f"prompts ask for the {kind} {unknown[0]!r}, which is never found; known are {names}")

    def judge(self, images: Sequence[Tensor], prompts: Sequence[GenEvalPrompt]) -> list[Verdict]:
        """One verdict for each image (3, H, W) uint8 and its prompt."""
        return [
            judge(prompt, found, partial(self.color_classifier.classify, image), self.rules)
            for image, prompt, found in zip(images, prompts, self.detector.detect(images), strict=True)
        ]


def noise_seed(seed: int, prompt_index: int, image_index: int) -> int:
    """The 63-bit seed of one image's noise: the same for every model, batch size and number of processes."""
    words = np.random.SeedSequence([seed, prompt_index, image_index]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def jobs(prompts: PromptSet, settings: RunSettings) -> list[Job]:
    """All images of a run, prompt by prompt.

    Examples:
        >>> from hyperbagel.evaluation.geneval import RunSettings
        >>> [(job.prompt_index, job.image_index) for job in jobs(prompts, RunSettings(images_per_prompt=2))][:3]
        [(0, 0), (0, 1), (1, 0)]
    """
    return [
        Job(prompt, image, noise_seed(settings.seed, prompt, image))
        for prompt in range(len(prompts))
        for image in range(settings.images_per_prompt)
    ]


def judge_jobs(
    wanted: Sequence[Job], generate: Generate, prompts: PromptSet, scorer: Scorer, batch_size: int = 16
) -> Iterator[ImageResult]:
    """Generate and judge the wanted images; images that `generate` returns as None are left out.

    ValueError if `generate` returns another number of images than it was asked for.

    Examples:
        >>> from hyperbagel.evaluation.geneval import RunSettings, Scorer, jobs
        >>> from hyperbagel.evaluation.geneval.scene_detector import SceneDetector
        >>> blank = torch.full((3, 64, 64), 255, dtype=torch.uint8)
        >>> wanted = jobs(prompts, RunSettings(images_per_prompt=1))[:1]
        >>> (result,) = judge_jobs(wanted, lambda prompts, seeds: [blank], prompts, Scorer(SceneDetector()))
        >>> result.correct
        False
    """
    for start in range(0, len(wanted), batch_size):
        batch = wanted[start : start + batch_size]
        images = generate([prompts.prompts[job.prompt_index].prompt for job in batch], [job.seed for job in batch])
        if len(images) != len(batch):
            raise ValueError(f"asked for {len(batch)} images, got {len(images)}: return None for one that failed")
        there = [(job, image) for job, image in zip(batch, images, strict=True) if image is not None]
        asked = [prompts.prompts[job.prompt_index] for job, _ in there]
        verdicts = scorer.judge([image for _, image in there], asked)
        for (job, _), prompt, verdict in zip(there, asked, verdicts, strict=True):
            reasons = tuple(str(reason) for reason in verdict.reasons)
            yield ImageResult(job.prompt_index, job.image_index, prompt.tag, prompt.metadata, reasons)


def run_info(prompts: PromptSet, settings: RunSettings) -> RunInfo:
    """What a run of these prompts is asked to do.

    Examples:
        >>> from hyperbagel.evaluation.geneval import RunSettings
        >>> run_info(prompts, RunSettings(images_per_prompt=2)).expected_images == 2 * len(prompts)
        True
    """
    return RunInfo(prompts.name, prompts.sha256, len(prompts), settings.images_per_prompt, settings.seed)


def evaluate(
    generate: Generate,
    prompts: PromptSet,
    detector: Detector,
    settings: RunSettings | None = None,
    color_classifier: ColorClassifier | None = None,
) -> GenEvalReport:
    """Run GenEval on one model. Missing images are not scored, but counted in the report and warned of.

    Examples:
        >>> from hyperbagel.evaluation.geneval import RunSettings
        >>> from hyperbagel.evaluation.geneval.scene_detector import SceneDetector
        >>> def draw(prompts, seeds):
        ...     return [torch.full((3, 64, 64), 255, dtype=torch.uint8) for _ in prompts]
        ...
        >>> report = evaluate(draw, prompts, SceneDetector(), RunSettings(images_per_prompt=1))
        >>> report.overall.estimate  # blank pictures show nothing
        0.0
    """
    settings = settings or RunSettings()
    scorer = Scorer(detector, color_classifier, settings.rules)
    scorer.check(prompts.prompts)
    wanted = jobs(prompts, settings)
    results = judge_jobs(wanted, generate, prompts, scorer, settings.batch_size)
    shown = tqdm(results, "GenEval", len(wanted), leave=False, disable=None)
    report = build_report(shown, run_info(prompts, settings), settings.intervals)
    if report.missing:
        log.warning("GenEval: %d of %d images are missing", report.missing, report.info.expected_images)
    return report
