"""Optimisation of the networks of a stage: loss terms, accumulation, clipping, schedules, counting, logging."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from hyperbagel.losses.base import Update, WeightedTerm
from hyperbagel.training.networks import Training
from hyperbagel.training.partial_checkpoint import PartialCheckpoint
from hyperbagel.training.schedules import WarmupStableDecay
from hyperbagel.training.watch import Watch

_PASSES = "backward_passes"
_SAMPLES = "samples_seen"


class Optimization(PartialCheckpoint):
    """A module of networks, each with its own optimizer, the student among them, and of loss terms.

    student_step counts the student's updates and is the x-axis of everything logged here.

    Args:
        max_updates: student updates after which training stops, None for no limit.
    """

    counters: tuple[str, ...] = ("student_step",)

    def __init__(self, max_updates: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.max_updates = max_updates
        self._training: dict[str, Training] = {}
        self._paths: dict[str, tuple[str, ...]] = {}
        self._roles: dict[str, Update] = {}
        self._backward_passes: dict[str, int] = {}
        self._samples = 0
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._started = self._worked_until = self._ended = 0.0
        self.terms = nn.ModuleList()
        self.student_step = 0
        self.watch = Watch()

    # Set-up

    def add_network(
        self, name: str, training: Training, role: Update = "student", paths: Sequence[str] | None = None
    ) -> None:
        """Have a network trained; of a low-rank one only what trains is saved.

        role: the updates it takes part in; loss terms with parameters train with the first network of their role.
        paths: the submodules that it is made of, by default the one of its name.
        """
        self._training[name], self._roles[name], self._backward_passes[name] = training, role, 0
        self._paths[name] = (name,) if paths is None else tuple(paths)
        if training.lora is not None:
            for path in self._paths[name]:
                self.leave_out_frozen(path, self.get_submodule(path))

    @property
    def networks(self) -> Mapping[str, Training]:
        """How each network is trained, by name."""
        return self._training

    def add_loss(self, term: WeightedTerm) -> None:
        """Add a loss term, before optimizers are built. Raises ValueError for a taken name or a missing critic."""
        if term.name in {own.name for own in self.loss_terms}:
            raise ValueError(f"{type(self).__name__} already has a loss term {term.name!r}: give this one another name")
        if term.update == "critic" and "critic" not in self._roles.values():
            raise ValueError(f"loss term {term.name!r}: {type(self).__name__} has no critic to update")
        self.terms.append(term)
        for part in term.unsaved:
            self.leave_out(f"terms.{len(self.terms) - 1}.{part}")

    @property
    def loss_terms(self) -> list[Any]:
        """All terms, of both updates."""
        return list(self.terms)

    def configure_optimizers(self) -> Any:
        """One optimizer a network, over its parameters and those of the loss terms that train with it."""
        optimizers, schedulers = [], []
        for name, training in self._training.items():
            optimizers.append(training.optimizer(self._named_parameters_of(name)))
            if training.scheduler is not None:
                schedulers.append(training.scheduler(optimizers[-1]))
                if name == "student" and isinstance(schedulers[-1], WarmupStableDecay):
                    schedulers[-1].end_at(self.updates)
        return optimizers, schedulers

    def _named_parameters_of(self, name: str) -> list[tuple[str, nn.Parameter]]:
        named = [
            (f"{path}.{n}", p)
            for path in self._paths[name]
            for n, p in self.get_submodule(path).named_parameters()
            if p.requires_grad
        ]
        role = self._roles[name]
        if next(other for other, theirs in self._roles.items() if theirs == role) == name:
            named += [
                (f"terms.{term.name}.{n}", p)
                for term in self.loss_terms
                if term.update == role
                for n, p in term.named_parameters()
                if p.requires_grad
            ]
        return named

    @property
    def updates(self) -> int | None:
        """The student updates of the whole run, None where neither the stage nor the trainer has a limit."""
        if self.max_updates is not None:
            return self.max_updates
        # The trainer counts the steps of all optimizers.
        limit = self.trainer.max_steps if self._trainer is not None and len(self._training) == 1 else -1
        return limit if limit > 0 else None

    # Steps

    def total(self, step: Any, update: Update) -> Tensor:
        """Weighted sum of the terms of an update that apply to its batch; logs each.

        Raises FloatingPointError with the batch's keys on NaN (on an accelerator some updates later, see `Watch`),
        ValueError when no term applies to the batch.
        """
        terms = [term for term in self.loss_terms if term.update == update and term.applies_to(step.batch)]
        if not terms:
            raise ValueError(
                f"no loss of the {update} applies to documents of source {step.batch.source!r}: add one (AddLoss), or "
                "leave the source out"
            )
        loss = torch.zeros((), device=self.device)
        for term in terms:
            value = term(step)
            self.watch.expect(value.isfinite(), partial(_not_finite, term.name, value.detach(), _place(step)))
            self.log_at_step({f"loss/{term.name}": value.detach(), **term.metrics}, len(step.batch))
            loss = loss + term.weight * value
        return loss

    def update(self, names: str | tuple[str, ...], loss: Tensor) -> bool:
        """Backward pass and, when the accumulation is full, one clipped optimizer step of each named network.

        Networks that share a loss must accumulate alike. Returns whether the optimizers stepped.
        """
        names = (names,) if isinstance(names, str) else names
        accumulate = self._training[names[0]].accumulate
        self.manual_backward(loss / accumulate)
        stepped = False
        for name in names:
            self._backward_passes[name] += 1
            if self._backward_passes[name] % accumulate == 0:
                self._optimizer_step(name)
                stepped = True
        return stepped

    def _optimizer_step(self, name: str) -> None:
        training, optimizer = self._training[name], self._optimizer_of(name)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, training.clip or float("inf"))
        self.log_at_step({f"grad_norm/{name}": norm, f"lr/{name}": optimizer.param_groups[0]["lr"]})
        optimizer.step()
        optimizer.zero_grad()
        if training.scheduler is not None:
            scheduled = [n for n, t in self._training.items() if t.scheduler is not None]
            _as_list(self.lr_schedulers())[scheduled.index(name)].step()
        if name == "student":
            self.student_step += 1
            if self.finished:
                self.trainer.should_stop = True

    def _optimizer_of(self, name: str) -> LightningOptimizer:
        optimizer: LightningOptimizer = _as_list(self.optimizers())[list(self._training).index(name)]
        return optimizer

    @property
    def finished(self) -> bool:
        """Whether the student has had its updates."""
        return self.max_updates is not None and self.student_step >= self.max_updates

    def log_at_step(self, metrics: Mapping[str, Any], batch_size: int = 1, **options: Any) -> None:
        """Log metrics against the student's updates. options: of Lightning's `log_dict`."""
        self.log_dict({name: self._tensor(value) for name, value in metrics.items()}, batch_size=batch_size, **options)
        # What loggers take for the x-axis; outside of training, a mean over batches.
        self.log("step", self._tensor(self.student_step), batch_size=batch_size, sync_dist=not self.training)

    def _tensor(self, value: Tensor | float) -> Tensor:
        """A number on the device, written there: Lightning would bring it there, and wait for the device each time."""
        return value if isinstance(value, Tensor) else torch.full((), float(value), device=self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note how full each network's accumulation is, and how much was seen. Raises FloatingPointError as `total`."""
        self.watch.settle()
        checkpoint[_PASSES] = dict(self._backward_passes)
        checkpoint[_SAMPLES] = self._samples

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with accumulations where they were."""
        self._backward_passes |= checkpoint.get(_PASSES, {})
        self._samples = checkpoint.get(_SAMPLES, 0)

    # Cost

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the wall-clock seconds inside to this step's `time/<part>`, and show them in profiles.

        Work queued on an accelerator counts where it is waited for.
        """
        start = time.perf_counter()
        with torch.profiler.record_function(part):
            yield
        self._worked_until = time.perf_counter()
        self._seconds[part] += self._worked_until - start

    def on_train_start(self) -> None:
        """Check the names of sources; a finished run that is resumed has nothing left to do."""
        self._check_sources()
        self.watch.deferring = self.device.type != "cpu"
        if self.finished:
            self.trainer.should_stop = True
        self._ended = time.perf_counter()

    def _check_sources(self) -> None:
        """Raises ValueError for a part of the loss for a source that the data module, if it names its own, lacks."""
        data = getattr(self.trainer, "datamodule", None)
        known = {source.name for source in getattr(data, "sources", {}).get("train", ())}
        for part in self.modules():
            unknown = set(getattr(part, "sources", None) or ()) - known
            if known and unknown:
                what = f"loss term {part.name!r}" if isinstance(part, WeightedTerm) else type(part).__name__
                raise ValueError(
                    f"{what}: no source of `data.train` is named {', '.join(sorted(unknown))}; "
                    f"choose its `sources` of {', '.join(sorted(known))}"
                )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """The batch has arrived: what it was waited for is `time/data`, and its documents count as seen."""
        self._started = self._worked_until = time.perf_counter()
        self._seconds.clear()
        self._seconds["data"] = self._started - self._ended
        self._samples += len(batch) * self.trainer.world_size if isinstance(batch, Sized) else 0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log what the batch cost: `time/step` as a whole, and its parts; and the documents seen so far, of all ranks.
        Evaluations that followed it do not count. Losses and gradients are looked at as often as losses are logged."""
        self._seconds["step"] = self._worked_until - self._started
        cost = {f"time/{part}": seconds for part, seconds in self._seconds.items()}
        self.log_at_step(cost | {"samples_seen": float(self._samples)})
        if (batch_idx + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.watch.settle()
        self._ended = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        """Look at the last losses and gradients, before anything is exported."""
        self.watch.settle()


def _not_finite(name: str, value: Tensor, place: str) -> str:
    return f"loss {name!r} is {float(value)} {place}"


def _place(step: Any) -> str:
    """In words: what waits to be looked at must not keep the step, whose tensors are most of a device's memory."""
    documents = ", ".join(step.batch.keys)
    return f"at student update {step.student_step} on documents {documents} of source {step.batch.source!r}"


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
