"""The callback `GEdit`: a stage edits pictures, and a judge scores them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from torchvision.utils import make_grid

from hyperbagel.bagel.appearance import as_seen
from hyperbagel.bagel.images import of_uint8
from hyperbagel.callbacks.evaluation import Evaluation, Findings, Row, Run
from hyperbagel.evaluation.gedit.dataset import GEditBench
from hyperbagel.evaluation.gedit.runner import GEditSettings, report, sample_seed, score_samples
from hyperbagel.evaluation.gedit.samples import LANGUAGES, OFFICIAL_CATEGORIES, EditSample, ExactJudge, Judge
from hyperbagel.evaluation.gedit.scene_world import SCENE_CATEGORIES, scene_edit_samples
from hyperbagel.evaluation.reports import OWN, SOURCE
from hyperbagel.pipeline.painter import Cost, Painter


@dataclass(frozen=True)
class GEditData:
    """What is to be edited."""

    data: str | None = None
    """The published benchmark, file or folder; None: edits of the scenes world."""
    split: Literal["val", "test"] = "test"
    """Split of the edits of the scenes world: val for choices and test for what is reported."""
    per_kind: int = 20
    """Edits of each kind of the scenes world."""
    languages: tuple[str, ...] = LANGUAGES
    """Languages of the instructions."""
    shown: int = 8
    """Pictures in the logged grid."""

    def read(self) -> tuple[Sequence[EditSample], tuple[str, ...]]:
        """The samples, and the categories they are of."""
        if unknown := set(self.languages) - set(LANGUAGES):
            raise ValueError(f"gedit: languages {sorted(unknown)} are unknown, use some of {LANGUAGES}")
        if self.data is not None:
            return GEditBench(self.data, self.languages), OFFICIAL_CATEGORIES
        samples = scene_edit_samples(self.per_kind, split=self.split)
        return [sample for sample in samples if sample.language in self.languages], tuple(SCENE_CATEGORIES)


@dataclass(frozen=True)
class GEditRun:
    """How edits are made and judged."""

    batch_size: int = 32
    """Pictures edited at once."""
    judge_workers: int = 1
    """Threads that ask the judge."""
    seed: int = 0
    """Seed of all noise."""


_DATA, _SETTINGS = GEditData(), GEditRun()

_Editor: TypeAlias = Callable[[Sequence[EditSample], Sequence[int]], list[Image.Image]]
"""(samples, one seed a sample) -> one edited image a sample."""


class GEdit(Evaluation):
    """Edits pictures by instructions and has a judge score them: logs `gedit/{sc,pq,o}` (of the first language, and of
    each under its name), `nfe` and `time/seconds_per_image`, and a grid of sources over edits.

    Args:
        judge: scores edits; figures of different judges must not be compared.
        data: what is to be edited.
        rows: what to measure, by name: the stage's own sampler (null), or what differs from it in a row, and the
            distilled branch to measure instead of the stage's.
        settings: batch size, threads of the judge, seed.
        every_n_updates: student updates between two runs in `fit`; 0 for none.

    Examples:
        >>> from hyperbagel.callbacks.gedit import GEditData
        >>> from hyperbagel.evaluation.gedit.judges.scene import SceneJudge
        >>> callback = GEdit(SceneJudge(), GEditData(per_kind=1, languages=("en",)), every_n_updates=100)
        >>> callback.samples[0].instruction
        'Make the brown square orange.'
    """

    def __init__(
        self,
        judge: Judge | ExactJudge,
        data: GEditData = _DATA,
        rows: dict[str, Row | None] | None = None,
        settings: GEditRun = _SETTINGS,
        every_n_updates: int = 0,
    ) -> None:
        super().__init__(every_n_updates)
        self.judge, self.shown = judge, data.shown
        self.samples, categories = data.read()
        self.settings = GEditSettings(categories, settings.seed, settings.batch_size, settings.judge_workers)
        self.rows = rows or {OWN: None}

    def evaluate(self, run: Run) -> Findings:
        """Every row."""
        chosen = self._chosen()
        findings = Findings(captions=[sample.instruction for sample in chosen])
        sources = [as_seen(sample.source) for sample in chosen]
        findings.samples[SOURCE] = [pil_to_tensor(picture) for picture in sources]
        for name, row in self.rows.items():
            painter = run.painter(run.stage.editing_sampler, row)
            scored = run.gather(score_samples(_editor(painter), self._share(run), self.judge, self.settings))
            result = report(scored, self.judge, self.settings)
            findings.rows[name] = result.metrics() | run.gather_cost(painter.cost)
            findings.details[name] = result.to_dict()
            edited = self._edited(replace(painter, cost=Cost()))
            findings.samples[name] = [pil_to_tensor(picture) for picture in edited]
            findings.pictures[f"gedit/{name}"] = _grid(sources, edited)
        return findings

    def _share(self, run: Run) -> list[EditSample]:
        """This process's samples, instructions of like length together."""
        order = sorted(range(len(self.samples)), key=lambda i: len(self.samples[i].instruction))
        return [self.samples[index] for index in run.share(order)]

    def _chosen(self) -> list[EditSample]:
        """The samples in the grid."""
        number = min(self.shown, len(self.samples))
        return [self.samples[slot * len(self.samples) // number] for slot in range(number)]

    def _edited(self, painter: Painter) -> list[Image.Image]:
        """The edits in the grid, of the same samples and seeds in every run."""
        chosen = self._chosen()
        return _editor(painter)(chosen, [sample_seed(self.settings.seed, sample.key) for sample in chosen])


def _grid(sources: Sequence[Image.Image], edited: Sequence[Image.Image]) -> Tensor:
    """Sources above their edits, all of one size."""
    size = sources[0].size
    pictures = [pil_to_tensor(picture.resize(size)) for picture in (*sources, *edited)]
    return make_grid(pictures, nrow=max(len(sources), 1))


def _editor(painter: Painter) -> _Editor:
    def edit(samples: Sequence[EditSample], seeds: Sequence[int]) -> list[Image.Image]:
        images = painter.edit([s.source for s in samples], [s.instruction for s in samples], seeds)
        return [of_uint8(image) for image in images]

    return edit
