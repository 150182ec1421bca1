"""Batches of a `BatchOrder`, of which a resumed run sees exactly those that it had not seen, in the same order."""

from __future__ import annotations

import os
import signal
import weakref
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from threading import Thread
from typing import Any, Final, Generic, TypeVar

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from hyperbagel.datamodules.batch_order import BatchOrder, OrderedBatch

Batch = TypeVar("Batch")

_HOST: Final = torch.device("cpu")


@dataclass(frozen=True)
class LoadSettings:
    """Where batches are loaded, and from which on.

    num_workers: processes that load, 0 for the main process; prefetch: batches each loads ahead; position: batches
    that were handed out before; repeat: begin with batch 0 in every `iter` (validation); device: where batches go.
    """

    num_workers: int = 0
    prefetch: int = 4
    position: int = 0
    repeat: bool = False
    device: torch.device = _HOST


class OrderedLoader(Iterable[Batch], Generic[Batch]):
    """The batches of a `BatchOrder`, in its order for any number of workers.

    Each `iter` goes over the rest of the current epoch, or over the next when that is done. `position` counts the
    batches handed out since the beginning of the run, however many were loaded ahead.

    order: of the batches; dataset: gives the batch for an `OrderedBatch`.
    """

    def __init__(self, order: BatchOrder, dataset: Dataset[Any], settings: LoadSettings) -> None:
        self.order, self.dataset, self.repeat, self.device = order, dataset, settings.repeat, settings.device
        self._unseen = _UnseenBatches(order, settings.position)
        workers = settings.num_workers
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            sampler=self._unseen,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=settings.prefetch if workers else None,
            persistent_workers=bool(workers) and not settings.repeat,
            generator=torch.Generator(),  # the default would draw from the global state, once an epoch
            worker_init_fn=_outlive_signals,
            pin_memory=settings.device.type == "cuda",
        )
        # Data module and loader know each other. If the workers' queues were collected with that circle, they would be
        # closed before their workers had been told to end, and each would be waited for in vain.
        weakref.finalize(self, _let_go, self._loader)

    def __len__(self) -> int:
        """Batches an epoch, resumed ones included."""
        return len(self.order)

    @property
    def position(self) -> int:
        """Batches handed out since the beginning of the run."""
        return self._unseen.position

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in self._loaded():
            self._unseen.position = number + 1
            yield batch

    def _loaded(self) -> Iterator[tuple[int, Any]]:
        """What the dataset gives for each batch up to the end of the epoch, with the batch's number."""
        if self.repeat:
            self._unseen.position = 0
        return zip(range(self.position, self._unseen.end), self._loader, strict=True)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module keeps the position. That the method exists tells Lightning that resuming works."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing, see `state_dict`."""


class _UnseenBatches:
    """The batches from a position to the end of its epoch."""

    def __init__(self, order: BatchOrder, position: int) -> None:
        self._order, self.position = order, position

    @property
    def end(self) -> int:
        """Position at which the epoch ends."""
        return (self.position // len(self) + 1) * len(self)

    def __iter__(self) -> Iterator[OrderedBatch]:
        return (self._order[number] for number in range(self.position, self.end))

    def __len__(self) -> int:
        return len(self._order)


class ResumableDataModule(L.LightningDataModule):
    """A data module whose state is one number, that of the batches consumed."""

    def __init__(self) -> None:
        super().__init__()
        self._train_loader: OrderedLoader[Any] | None = None
        self._resumed: dict[str, Any] = {}

    @abstractmethod
    def _fingerprint(self, order: BatchOrder) -> dict[str, Any]:
        """What the sequence of training batches depends on."""

    def _going_on(self, order: BatchOrder) -> int:
        """Batches of the order that were handed out before. Raises ValueError if they were of other data."""
        fingerprint = self._fingerprint(order)
        if self._resumed and self._resumed["data"] != fingerprint:
            raise ValueError(
                f"the data is not that of the checkpoint, so its batches cannot be continued: it had "
                f"{self._resumed['data']}, now {fingerprint}. Resume with the same sources, batching and number of "
                "ranks, or start a new run from the checkpoint's weights"
            )
        return self._consumed()

    @property
    def _overfits(self) -> bool:
        """Whether the trainer reads the same few batches again and again."""
        return getattr(self.trainer, "overfit_batches", 0) > 0

    @property
    def _device(self) -> torch.device:
        """Where batches go."""
        return _HOST if self.trainer is None else self.trainer.strategy.root_device

    def _ranks(self) -> tuple[int, int]:
        """Rank and number of ranks among those that read different data (not those that share a batch)."""
        distributed = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return (distributed["rank"], distributed["num_replicas"]) if distributed else (0, 1)

    def _consumed(self) -> int:
        """Batches handed out, without the one that the trainer has not finished."""
        if self._train_loader is None:
            return int(self._resumed.get("batches", 0))
        position = self._train_loader.position
        if self.trainer is None or not self.trainer.training:
            return position
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return position - (progress.ready - progress.processed)

    def teardown(self, stage: str) -> None:
        """Stop the workers."""
        if stage == "fit" and self._train_loader is not None:
            self._resumed = self.state_dict()
            self._train_loader = None

    def state_dict(self) -> dict[str, Any]:
        """Number of batches consumed, and what the data was."""
        if self._train_loader is None:
            return self._resumed
        return {"batches": self._consumed(), "data": self._fingerprint(self._train_loader.order)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a run stopped; checked against the data when training begins."""
        self._resumed = state_dict
        self._train_loader = None


def _outlive_signals(worker: int) -> None:
    """Clusters end a run with a SIGTERM to each of its processes, terminals with a SIGINT: the trainer needs its
    batches until it has saved.

    Only the trainer's own SIGTERM, with which it stops its workers, ends the worker. Systems that do not tell who sent
    a signal end it with any.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_end_with_trainer, args=(os.getppid(),), daemon=True).start()


def _end_with_trainer(trainer: int) -> None:
    """Wait for a SIGTERM from a process, the worker's parent, and exit."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)


def _let_go(loader: DataLoader[Any]) -> None:
    """Nothing: that a finalizer has the loader keeps it until then."""


def _unchanged(batch: Any) -> Any:
    return batch
