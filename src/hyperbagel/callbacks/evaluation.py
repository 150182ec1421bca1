"""The base of evaluating callbacks: when they run, on which weights, in which processes, and where results go."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, TypeVar, cast

import lightning as L
import torch
import torch.distributed
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from hyperbagel.bagel.branch_checkpoint import load_branch
from hyperbagel.bagel.finite import NotFiniteError
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.callbacks.loggers import flush, log_captions, log_pictures
from hyperbagel.callbacks.requirements import check_requirements, require_branch
from hyperbagel.flow.guidance import Guidance
from hyperbagel.flow.sampler import Reader, Sampler
from hyperbagel.pipeline.painter import Cost, Painter, warn_of_misfits
from hyperbagel.training.averages import averaged_weights
from hyperbagel.training.stage import Stage, evaluated, student_updates

_Item = TypeVar("_Item")


@dataclass
class Findings:
    """What an evaluation yields.

    rows: metrics by the name of what was measured (a sampler setting); the first row is the stage's result.
    details: whatever else goes into report.json, JSON-able. pictures: (3, H, W) uint8 by tag, for loggers; captions:
    what is in them, in the order of their parts. samples: these parts as single pictures, by what drew them, for
    reports.
    """

    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)
    samples: dict[str, list[Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """What one row measures: the stage's own sampler and branch, or what is said to differ from them."""

    steps: int | None = None
    """True steps; None: the sampler's."""
    shift: float | None = None
    """Timestep shift; None: the sampler's."""
    guidance: Guidance | Literal["own"] | None = "own"
    """Classifier-free guidance; own: the sampler's, null: none, one pass per step."""
    branch: str | None = None
    """File of the distilled branch that denoises; None: the stage's."""
    context: Reader | None = None
    """Which branch reads source pictures, the original or the student that denoises; None: as the sampler says."""

    def __post_init__(self) -> None:
        self.sampler(Sampler())  # raises for what no sampler can do

    def sampler(self, own: Sampler) -> Sampler:
        """The sampler of the row. own: the stage's. Raises ValueError for impossible settings."""
        return Sampler(
            own.steps if self.steps is None else self.steps,
            own.shift if self.shift is None else self.shift,
            own.guidance if self.guidance == "own" else self.guidance,
            self.context or own.context,
        )


@dataclass(frozen=True)
class Run:
    """One evaluation: the stage, its tokenizer, and this process's share of the work."""

    stage: Stage
    tokenizer: Tokenizer
    rank: int
    world: int

    def painter(self, own: Sampler, row: Row | None = None) -> Painter:
        """Draws what a row says. own: the stage's sampler, which is taken as it is without a row.

        Raises CheckpointError for an unusable branch file.
        """
        row = row or Row()
        sampler, branch = row.sampler(own), self.stage.branch
        if row.branch is not None:
            branch, info = load_branch(row.branch, self.stage.model)
            if self.rank == 0:
                warn_of_misfits(row.branch, info, sampler)
        return Painter(self.stage.model, self.tokenizer, sampler, branch)

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """What this process works on; over all processes every item comes exactly once."""
        return items[self.rank :: self.world]

    def gather(self, items: Sequence[_Item]) -> list[_Item]:
        """The items of all processes, on each of them."""
        if self.world == 1:
            return list(items)
        parts: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]

    def gather_cost(self, cost: Cost) -> dict[str, float]:
        """The metrics of what drawing cost, over all processes."""
        costs = self.gather([cost])
        total = Cost(sum(c.images for c in costs), sum(c.seconds for c in costs), max(c.nfe for c in costs))
        return {"nfe": float(total.nfe), "time/seconds_per_image": total.seconds_per_image}


class Evaluation(Callback, ABC):
    """Runs in `validate` and `test`, and in `fit` every so many student updates, on averaged weights if there are any.

    Metrics are logged against student updates: those of the first row under their plain names, those of others as
    `<row>/<metric>`. `findings` keeps the last results for reports.

    rows: what is measured, by name, where there are several; None for the stage's own.

    Args:
        every_n_updates: student updates between two runs in `fit`; 0 for none.
    """

    rows: Mapping[str, Row | None] = MappingProxyType({})

    def __init__(self, every_n_updates: int = 0) -> None:
        if every_n_updates < 0:
            raise ValueError(f"every_n_updates is {every_n_updates}: give 0 (not in fit) or more")
        self.every_n_updates = every_n_updates
        self.findings = Findings()
        self._last_step = 0
        self._captioned = False

    @abstractmethod
    def evaluate(self, run: Run) -> Findings:
        """Do this process's share, gather, and return the results of all; the same on every process."""

    def requirements(self, stage: L.LightningModule, command: str) -> Iterator[Callable[[], object]]:
        """Checks of what evaluating a stage will need, see `check_requirements`: here of the rows' branches.

        Raises ValueError for a stage that cannot be evaluated.
        """
        model = evaluated(stage, by=type(self).__name__).model
        if command != "fit" or self.every_n_updates:
            for row in self.rows.values():
                if row is not None and row.branch is not None:
                    yield partial(require_branch, row.branch, model)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse, before anything runs, what lacks something that this or another callback needs."""
        check_requirements(trainer.callbacks, pl_module, stage)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from where a resumed run stopped."""
        self._last_step = student_updates(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Run if it is time."""
        step = student_updates(pl_module)
        before, self._last_step = self._last_step, step
        if self.every_n_updates and step // self.every_n_updates > before // self.every_n_updates:
            self._run(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(self._metrics(), step=step)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run in `validate`; the validations of `fit` have their own rhythm."""
        if trainer.state.fn == "validate":
            self._run_and_log(trainer, pl_module)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run in `test`."""
        self._run_and_log(trainer, pl_module)

    def _run_and_log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning shows and returns what is logged through the stage; "step" is the x-axis that it logs against."""
        self._run(trainer, pl_module)
        pl_module.log_dict(self._metrics() | {"step": float(student_updates(pl_module))})

    def _run(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        training = pl_module.training
        pl_module.eval()
        stage = cast(Stage, pl_module)  # `requirements` refused others
        run = Run(stage, _tokenizer(trainer), trainer.global_rank, trainer.world_size)
        with averaged_weights(trainer, pl_module), torch.no_grad(), _autocast(trainer):
            self.findings = self.evaluate(run)
        for row, metrics in self.findings.rows.items():
            for metric, value in metrics.items():
                if not math.isfinite(value):
                    raise NotFiniteError(f"{type(self).__name__}: {metric} of {row!r} is {value}")
        pl_module.train(training)
        if trainer.is_global_zero:
            self._log_pictures(trainer.loggers, student_updates(pl_module))

    def _log_pictures(self, loggers: Sequence[Logger], step: int) -> None:
        """Log what was drawn, and once in a run what it should show."""
        found = self.findings
        for logger in loggers:
            log_pictures(logger, found.pictures, found.captions, step)
            if found.pictures and not self._captioned:
                benchmark = next(iter(found.pictures)).partition("/")[0]
                log_captions(logger, f"{benchmark}/captions", found.captions, step)
            flush(logger)
        self._captioned |= bool(found.pictures)

    def _metrics(self) -> dict[str, float]:
        """Of all rows, under the names of loggers."""
        names = list(self.findings.rows)
        return {
            metric if row == names[0] else f"{row}/{metric}": value
            for row, metrics in self.findings.rows.items()
            for metric, value in metrics.items()
        }


def _autocast(trainer: L.Trainer) -> AbstractContextManager[None]:
    """The trainer's mixed precision; other plugins change the default type, which noise and times must not have."""
    plugin = trainer.precision_plugin
    return plugin.forward_context() if isinstance(plugin, MixedPrecision) else nullcontext()


def _tokenizer(trainer: L.Trainer) -> Tokenizer:
    """The tokenizer by which the data is read."""
    data = getattr(trainer, "datamodule", None)
    builder = getattr(data, "builder", None)
    if builder is None:
        raise ValueError("evaluation reads texts with the data module's tokenizer: use InterleavedDataModule")
    tokenizer: Tokenizer = builder.tokenizer
    return tokenizer
