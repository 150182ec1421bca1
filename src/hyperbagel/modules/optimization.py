"""Manual optimisation of several networks: loss terms, accumulation, clipping, schedules, counting, logging."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperbagel.losses.term import Step, Update
from hyperbagel.modules.loss_terms import TakesLossTerms
from hyperbagel.modules.networks import Training
from hyperbagel.modules.pair_filter import PairFilter

_MAX_NETWORKS = 4


class ManualOptimization(TakesLossTerms):
    """A module of several networks, each with its own optimizer, the first being the student.

    student_step counts the student's updates and is the x-axis of everything logged here; batches_seen counts training
    batches.

    Args:
        max_updates: student updates after which training stops, None for no limit.
    """

    student_step: Tensor
    batches_seen: Tensor
    backward_passes: Tensor

    def __init__(self, max_updates: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.max_updates = max_updates
        self._training: dict[str, Training] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._started = self._worked_until = self._ended = 0.0
        self.register_buffer("student_step", torch.zeros((), dtype=torch.long))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("backward_passes", torch.zeros(_MAX_NETWORKS, dtype=torch.long))

    # Set-up

    def add_network(self, name: str, training: Training) -> None:
        """Have the submodule `name` trained; of a low-rank one only what trains is saved."""
        self._training[name] = training
        if training.lora is not None:
            self.leave_out_frozen(name, self.get_submodule(name))

    def configure_optimizers(self) -> Any:
        """One optimizer a network, over its parameters and those of the loss terms that train with it."""
        optimizers, schedulers = [], []
        for name, training in self._training.items():
            named = [(f"{name}.{n}", p) for n, p in self.get_submodule(name).named_parameters() if p.requires_grad]
            role: Update | None = "student" if name == "student" else "critic" if name == self.critic_network else None
            named += self.term_parameters(role)
            optimizers.append(training.optimizer(named))
            if training.scheduler is not None:
                schedulers.append(training.scheduler(optimizers[-1]))
        return optimizers, schedulers

    # Steps

    def total(self, step: Step, update: Update) -> Tensor:
        """Weighted sum of the terms of an update that concern its batch; logs each.

        Raises FloatingPointError with the batch's keys on NaN, ValueError when no term concerns the batch.
        """
        terms = [term for term in self.loss_terms if term.update == update and term.concerns(step.batch)]
        if not terms:
            raise ValueError(
                f"no loss of the {update} concerns documents of source {step.batch.source!r}: add one (AddLoss), or "
                "leave the source out"
            )
        loss = torch.zeros((), device=self.device)
        for term in terms:
            value = term(step)
            if not bool(value.isfinite()):
                raise FloatingPointError(
                    f"loss {term.name!r} is {float(value)} at student update {step.student_step} on documents "
                    f"{', '.join(step.batch.keys)} of source {step.batch.source!r}"
                )
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
            index = list(self._training).index(name)
            self.backward_passes[index] += 1
            if int(self.backward_passes[index]) % accumulate == 0:
                self._optimizer_step(name, index)
                stepped = True
        return stepped

    def _optimizer_step(self, name: str, index: int) -> None:
        training, optimizer = self._training[name], _as_list(self.optimizers())[index]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, training.clip or float("inf"))
        self.log_at_step({f"grad_norm/{name}": norm})
        optimizer.step()
        optimizer.zero_grad()
        if training.scheduler is not None:
            scheduled = [n for n, t in self._training.items() if t.scheduler is not None]
            _as_list(self.lr_schedulers())[scheduled.index(name)].step()
        if name == "student":
            self.student_step += 1
            if self.finished:
                self.trainer.should_stop = True

    @property
    def finished(self) -> bool:
        """Whether the student has had its updates."""
        return self.max_updates is not None and int(self.student_step) >= self.max_updates

    def log_at_step(self, metrics: Mapping[str, Any], batch_size: int = 1) -> None:
        """Log metrics against the student's updates."""
        self.log_dict({**metrics, "step": float(self.student_step)}, batch_size=batch_size)

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
        """Check the terms' sources; a finished run that is resumed has nothing left to do."""
        self._check_sources()
        if self.finished:
            self.trainer.should_stop = True
        self._ended = time.perf_counter()

    def _check_sources(self) -> None:
        """Raises ValueError for a loss term or filter of a source that the data module, if it names its own, lacks."""
        data = getattr(self.trainer, "datamodule", None)
        known = {source.name for source in getattr(data, "sources", {}).get("train", ())}
        named = [(f"loss term {term.name!r}", term.sources) for term in self.loss_terms]
        named += [("pair filter", one.sources) for one in self.modules() if isinstance(one, PairFilter)]
        for what, sources in named:
            if known and (unknown := set(sources or ()) - known):
                raise ValueError(
                    f"{what}: no source of `data.train` is named {', '.join(sorted(unknown))}; "
                    f"choose its `sources` of {', '.join(sorted(known))}"
                )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """The batch has arrived: what it was waited for is `time/data`."""
        self._started = self._worked_until = time.perf_counter()
        self._seconds.clear()
        self._seconds["data"] = self._started - self._ended

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log what the batch cost: `time/step` as a whole, and its parts. Evaluations that followed it do not count."""
        self._seconds["step"] = self._worked_until - self._started
        self.log_at_step({f"time/{part}": seconds for part, seconds in self._seconds.items()})
        self._ended = time.perf_counter()

    def run_folder(self) -> Path:
        """Where this run's files go."""
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
