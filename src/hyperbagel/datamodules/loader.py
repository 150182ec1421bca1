"""Loading the batches of a `BatchOrder` with worker processes, and counting what was consumed."""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Thread
from time import perf_counter
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, Dataset

from hyperbagel.bagel.images import ImageTransform
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.datamodules.batch_order import BatchOrder, OrderedBatch
from hyperbagel.datamodules.documents import InterleavedDocument, TextPart
from hyperbagel.datamodules.packing import PackedBatch, pack
from hyperbagel.datamodules.pipeline import CondDropout, DocumentBuilder, keyed_random
from hyperbagel.datamodules.skipped import Skip, SkipLog, SkippedSampleError, SkipRecord
from hyperbagel.datamodules.sources import Samples
from hyperbagel.training.stage import LearnsFrom

_HOST: Final = torch.device("cpu")
_LOOK = 10_000
"""Batches without a usable document after which a source is given up."""


@dataclass(frozen=True)
class OpenSource:
    """A source that was opened. vit_transform: rules for its ViT images, None for the usual ones."""

    name: str
    samples: Samples
    vit_transform: ImageTransform | None = None


class BatchDataset(Dataset[PackedBatch]):
    """Builds the batch that the order asks for.

    dropout: None for none; learns_from: what the stage learns from, see `Stage`; None: all documents.
    """

    def __init__(
        self,
        sources: Sequence[OpenSource],
        builder: DocumentBuilder,
        seed: int,
        dropout: CondDropout | None,
        learns_from: Collection[LearnsFrom] | None = None,
    ) -> None:
        self.sources, self.builder, self.seed, self.dropout = list(sources), builder, seed, dropout
        self.learns_from = learns_from

    def __getitem__(self, batch: OrderedBatch) -> PackedBatch:
        """The documents of a batch without those that are unusable, or have nothing for the stage to learn, which are
        recorded instead."""
        source = self.sources[batch.source]
        documents, skipped = [], []
        for index in batch.samples:
            try:
                sample = source.samples.read(index)
                if self.learns_from is not None:
                    _require_lesson(sample.document(), self.learns_from)
                random = keyed_random(self.seed, batch.turn, sample.key)
                dropout = (self.dropout, random) if self.dropout else None
                documents.append(self.builder.build(sample, source.vit_transform, dropout))
            except SkippedSampleError as error:
                skipped.append(SkipRecord(error.cause, source.samples.place(index), str(error)))
        return pack(documents, source.name, skipped)


def _require_lesson(document: InterleavedDocument, learns_from: Collection[LearnsFrom]) -> None:
    """Raises SkippedSampleError for a document without anything to learn from."""
    found = {"picture"} if document.images else set()
    found |= {"text" if isinstance(part, TextPart) else "image" for part in document.parts if part.loss}
    if not found & set(learns_from):
        wanted = {"picture": "pictures", "text": "texts with loss", "image": "pictures with loss"}
        missing = " or ".join(wanted[kind] for kind in learns_from)
        raise SkippedSampleError(Skip.NOTHING_TO_LEARN, f"the stage learns from {missing}, it has none")


@dataclass(frozen=True)
class ReaderSettings:
    """How data is read."""

    num_workers: int = 2
    """Processes that load, 0 for the main process."""
    prefetch: int = 4
    """Batches each worker loads ahead."""
    max_skipped: int = 100
    """An error is raised when more samples than this are unusable."""
    cache_dir: str | None = None
    """Folder in which indexes of shards and copies of remote and compressed shards are kept, by default
    ~/.cache/hyperbagel."""


@dataclass(frozen=True)
class Monitor:
    """What a loader tells while it runs. skips: where unusable samples are counted; every: batches between two
    reports; report: takes the metrics, by name."""

    skips: SkipLog
    report: Callable[[dict[str, float]], None]
    every: int = 50


class DocumentLoader(Iterable[DocumentBatch]):
    """The batches of a `BatchOrder`, in its order for any number of workers.

    Each `iter` goes over the rest of the current epoch, or over the next when that is done. `position` counts the
    batches handed out since the beginning of the run, however many were loaded ahead. Pictures are put on `device`, for
    a GPU by way of page-locked memory, so that neither waits for the other. With repeat, every `iter`
    begins with batch 0 again (validation).
    """

    def __init__(
        self,
        order: BatchOrder,
        dataset: BatchDataset,
        settings: ReaderSettings,
        monitor: Monitor,
        position: int = 0,
        repeat: bool = False,
        device: torch.device = _HOST,
    ) -> None:
        self.order, self.dataset, self.monitor, self.repeat = order, dataset, monitor, repeat
        self.device = device
        self._unseen = _UnseenBatches(order, position)
        workers = settings.num_workers
        self._loader: DataLoader[PackedBatch] = DataLoader(
            dataset,
            sampler=self._unseen,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=settings.prefetch if workers else None,
            persistent_workers=bool(workers) and not repeat,
            generator=torch.Generator(),  # the default would draw from the global state, once an epoch
            worker_init_fn=_outlive_signals,
            pin_memory=device.type == "cuda",
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

    def __iter__(self) -> Iterator[DocumentBatch]:
        if self.repeat:
            self._unseen.position = 0
        meter = _Meter()
        stream = iter(self._loader)
        end = self._unseen.end
        for number in range(self.position, end):
            begin = perf_counter()
            packed = self._usable(next(stream), number)
            meter.add(packed, perf_counter() - begin)
            if number % self.monitor.every == 0 or number + 1 == end:
                self.monitor.report(meter.metrics() | self._skip_metrics())
                meter = _Meter()
            batch = packed.unpack(self.device)
            self._unseen.position = number + 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module keeps the position. That the method exists tells Lightning that resuming works."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing, see `state_dict`."""

    def _usable(self, packed: PackedBatch, number: int) -> PackedBatch:
        """The batch; if none of its documents is usable, the next of its source instead, so that no rank runs out of
        batches before the others."""
        self.monitor.skips.add(packed.skipped)
        if packed.keys:
            return packed
        source, reason = self.order[number].source, packed.skipped[0].reason
        for other in range(number + 1, number + min(len(self), _LOOK)):
            if self.order[other].source == source:
                packed = self.dataset[self.order[other]]
                self.monitor.skips.add(packed.skipped)
                if packed.keys:
                    return packed
        raise ValueError(
            f"source {packed.source!r} has no usable sample on rank {self.order.rank}, as far as was looked; of the "
            f"first: {reason}"
        )

    def _skip_metrics(self) -> dict[str, float]:
        return {f"data/skipped/{cause}": float(count) for cause, count in self.monitor.skips.counts.items()}


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


class _Meter:
    """Speed and padding over some batches."""

    def __init__(self) -> None:
        self._begin = perf_counter()
        self._documents = self._tokens = self._room = 0
        self._waited = 0.0

    def add(self, batch: PackedBatch, waited: float) -> None:
        """Count a batch for which the training waited so many seconds."""
        self._documents += len(batch.keys)
        self._tokens += sum(batch.tokens)
        self._room += max(batch.tokens) * len(batch.tokens)
        self._waited += waited

    def metrics(self) -> dict[str, float]:
        """Documents a second; share of the time spent waiting for data; share of padding in batches."""
        seconds = perf_counter() - self._begin
        return {
            "data/samples_per_second": self._documents / seconds,
            "data/wait_share": self._waited / seconds,
            "data/padding_share": 1 - self._tokens / max(self._room, 1),
        }


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


def _let_go(loader: DataLoader[PackedBatch]) -> None:
    """Nothing: that a finalizer has the loader keeps it until then."""


def _unchanged(batch: Any) -> Any:
    return batch
