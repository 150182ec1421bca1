"""Loading the batches of a `BatchOrder` with worker processes, and counting what was consumed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from torch.utils.data import Dataset

from hyperbagel.bagel.images import ImageTransform
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.datamodules.batch_order import BatchOrder, OrderedBatch
from hyperbagel.datamodules.documents import InterleavedDocument, TextPart
from hyperbagel.datamodules.packing import PackedBatch, pack
from hyperbagel.datamodules.pipeline import CondDropout, DocumentBuilder, keyed_random
from hyperbagel.datamodules.resumable import LoadSettings, OrderedLoader
from hyperbagel.datamodules.skipped import Skip, SkipLog, SkippedSampleError, SkipRecord
from hyperbagel.datamodules.sources import Samples
from hyperbagel.training.stage import LearnsFrom

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


class DocumentLoader(OrderedLoader[DocumentBatch]):
    """Batches of documents. Pictures are put on the device, for a GPU by way of page-locked memory, so that neither
    waits for the other.

    order: of the batches; dataset: builds them; settings: where they are loaded; monitor: what is told of them.
    """

    dataset: BatchDataset

    def __init__(self, order: BatchOrder, dataset: BatchDataset, settings: LoadSettings, monitor: Monitor) -> None:
        super().__init__(order, dataset, settings)
        self.monitor = monitor

    def __iter__(self) -> Iterator[DocumentBatch]:
        meter, loaded, begin = _Meter(), self._loaded(), perf_counter()
        for number, found in loaded:
            packed = self._usable(found, number)
            meter.add(packed, perf_counter() - begin)
            if number % self.monitor.every == 0 or number + 1 == self._unseen.end:
                self.monitor.report(meter.metrics() | self._skip_metrics())
                meter = _Meter()
            batch = packed.unpack(self.device)
            self._unseen.position = number + 1
            yield batch
            begin = perf_counter()

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
