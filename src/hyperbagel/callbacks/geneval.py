"""The callback `GenEval`: GenEval of a stage under one or several samplers, and distances of its pictures to others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
from torch import Tensor
from torchvision.utils import make_grid
from tqdm import tqdm

from hyperbagel.callbacks.evaluation import Evaluation, Findings, Row, Run
from hyperbagel.callbacks.fidelity import Fidelity, ImageKey
from hyperbagel.evaluation.batches import batches_of_equals
from hyperbagel.evaluation.geneval import (
    ColorClassifier,
    Detector,
    PromptSet,
    RunSettings,
    Scorer,
    build_report,
    jobs,
    judge_jobs,
    read_prompts,
    run_info,
)
from hyperbagel.evaluation.geneval.report import ImageResult
from hyperbagel.evaluation.geneval.runner import Job
from hyperbagel.evaluation.reports import OWN
from hyperbagel.pipeline.painter import Painter
from hyperbagel.scenes.prompts import geneval_prompts


@dataclass(frozen=True)
class GenEvalPrompts:
    """What is asked for."""

    file: str | None = None
    """Official metadata file (JSON lines); None: prompts of the scenes world in the official mix."""
    split: Literal["val", "test"] = "test"
    """Split of the prompts of the scenes world: val for choices and test for what is reported."""
    limit: int | None = None
    """About so many prompts, evenly spread over the tasks; None: all."""
    size: tuple[int, int] | None = None
    """Height and width of a picture in pixels, None for the model's largest square."""
    shown: int = 16
    """Pictures in the logged grid, one each of evenly spread prompts."""

    def read(self) -> PromptSet:
        """The prompts. Raises FileNotFoundError or PromptError for an unusable file."""
        if self.file is None:
            prompts = PromptSet.from_metadata(geneval_prompts(self.split), f"scenes {self.split} prompts")
        else:
            prompts = read_prompts(self.file)
        return prompts if self.limit is None else prompts.thinned(self.limit)


@dataclass(frozen=True)
class GenEvalSettings:
    """How pictures are drawn."""

    images_per_prompt: int = 4
    """Pictures per prompt, officially 4."""
    batch_size: int = 64
    """Pictures drawn at once."""
    seed: int = 0
    """Seed of all noise."""


_PROMPTS, _SETTINGS = GenEvalPrompts(), GenEvalSettings()


class GenEval(Evaluation):
    """Draws N pictures of each prompt, judges them by the official rules, and logs `geneval/<task>`,
    `geneval/overall`, `nfe` and `time/seconds_per_image`, and a grid of fixed prompts and seeds.

    Noise depends on seed, prompt and picture alone, so that results of stages and samplers can be compared in pairs.

    Args:
        detector: finds objects in pictures.
        color_classifier: names their colours; not needed where the detector does.
        prompts: what is asked for.
        rows: what to measure, by name: the stage's own sampler (null), or what differs from it in a row, and the
            distilled branch to measure instead of the stage's.
        settings: pictures per prompt, batch size, seed.
        fidelity: also measure distances of the pictures to others, and diversity.
        every_n_updates: student updates between two runs in `fit`; 0 for none.

    Examples:
        >>> from hyperbagel.callbacks.evaluation import Row
        >>> from hyperbagel.callbacks.geneval import GenEvalPrompts
        >>> from hyperbagel.evaluation.geneval.scene_detector import SceneDetector
        >>> rows = {"teacher": None, "6 steps": Row(steps=6)}
        >>> callback = GenEval(SceneDetector(), prompts=GenEvalPrompts(limit=6), rows=rows)
        >>> callback.prompts.prompts[0].prompt
        'a photo of a ring'
    """

    def __init__(
        self,
        detector: Detector,
        color_classifier: ColorClassifier | None = None,
        prompts: GenEvalPrompts = _PROMPTS,
        rows: dict[str, Row | None] | None = None,
        settings: GenEvalSettings = _SETTINGS,
        fidelity: Fidelity | None = None,
        every_n_updates: int = 0,
    ) -> None:
        super().__init__(every_n_updates)
        self.prompts = prompts.read()
        self.settings = RunSettings(settings.images_per_prompt, settings.batch_size, settings.seed)
        self.scorer = Scorer(detector, color_classifier, self.settings.rules)
        self.scorer.check(self.prompts.prompts)
        self.size, self.shown = prompts.size, prompts.shown
        self.fidelity = fidelity
        self.rows = rows or {OWN: None}

    def requirements(self, stage: L.LightningModule, command: str) -> Iterator[Callable[[], object]]:
        """Of the rows, and the teacher's features."""
        yield from super().requirements(stage, command)
        if self.fidelity is not None and (command != "fit" or self.every_n_updates):
            yield self.fidelity.check

    def evaluate(self, run: Run) -> Findings:
        """Every row."""
        findings = Findings(captions=[self.prompts.prompts[index].prompt for index in self.slots()])
        for name, row in self.rows.items():
            painter = run.painter(run.stage.sampler, row)
            drawing = _Drawing(self, run, painter)
            results = run.gather(drawing.judged(f"GenEval {name}"))
            report = build_report(results, run_info(self.prompts, self.settings), self.settings.intervals)
            metrics = report.metrics() | run.gather_cost(painter.cost)
            if self.fidelity is not None:
                features = dict(run.gather(list(drawing.features.items())))
                metrics |= self.fidelity.compare(name, features, run)
            shown = dict(run.gather(list(drawing.shown.items())))
            findings.rows[name] = metrics
            findings.details[name] = report.to_dict() | {"interval": str(report.overall)}
            findings.samples[name] = [shown[key] for key in sorted(shown)]
            findings.pictures[f"geneval/{name}"] = make_grid(findings.samples[name], nrow=4)
        return findings

    def slots(self) -> dict[int, int]:
        """Which prompts have their first picture in the grid, and where: index of the prompt -> slot."""
        number = min(self.shown, len(self.prompts))
        return {slot * len(self.prompts) // number: slot for slot in range(number)}


class _Drawing:
    """This process's share of the pictures of one row."""

    def __init__(self, callback: GenEval, run: Run, painter: Painter) -> None:
        self.callback, self.run, self.painter = callback, run, painter
        self.features: dict[ImageKey, Tensor] = {}
        self.shown: dict[int, Tensor] = {}
        self._slots = callback.slots()

    def judged(self, title: str) -> list[ImageResult]:
        """Draw and judge in batches of prompts of equal length."""
        callback, prompts = self.callback, self.callback.prompts
        wanted = jobs(prompts, callback.settings)
        lengths = [len(self.painter.tokenizer.encode(prompt.prompt)) for prompt in prompts.prompts]
        batches = list(batches_of_equals([lengths[job.prompt_index] for job in wanted], callback.settings.batch_size))
        results: list[ImageResult] = []
        hidden = True if self.run.rank else None  # None: hidden where nobody looks
        for batch in tqdm(self.run.share(batches), title, leave=False, disable=hidden):
            own = [wanted[index] for index in batch]
            results += judge_jobs(own, self._generator(own), prompts, callback.scorer, len(own))
        return results

    def _generator(self, wanted: list[Job]) -> Any:
        def generate(prompts: list[str], seeds: list[int]) -> list[Tensor]:
            images = self.painter.generate(prompts, seeds, self.callback.size)
            self._keep(wanted, images)
            return images

        return generate

    def _keep(self, wanted: list[Job], images: list[Tensor]) -> None:
        for job, image in zip(wanted, images, strict=True):
            if job.image_index == 0 and job.prompt_index in self._slots:
                self.shown[self._slots[job.prompt_index]] = image
        if self.callback.fidelity is not None:
            rows = self.callback.fidelity.features(images, self.run.stage.model)
            self.features |= {(job.prompt_index, job.image_index): row for job, row in zip(wanted, rows, strict=True)}
