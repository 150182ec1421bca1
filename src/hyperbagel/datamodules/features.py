"""Stored hidden states of a target, for training a draft head without running the target's layers."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.datamodules.batch_order import BatchOrder, OrderedBatch, OrderedSource, OrderSettings
from hyperbagel.datamodules.packing import pack
from hyperbagel.datamodules.pipeline import BuiltDocument, DocumentBuilder
from hyperbagel.datamodules.resumable import LoadSettings, OrderedLoader, ResumableDataModule
from hyperbagel.datamodules.shards import find_shards, read_samples
from hyperbagel.datamodules.skipped import SkippedSampleError, SkipRecord
from hyperbagel.draft.batch import FeatureBatch
from hyperbagel.draft.store import FeatureShards, collate

_WINDOW = 64
"""Batches among which documents are sorted by length before the target runs over them."""


class DocumentReader:
    """Batches of all documents with answers, once: what `draft.store.write_features` runs the target over.

    They are in the order of the shards, but for `_WINDOW` batches at a time sorted by length, which spares padding.

    documents, without_answers, skipped: how many samples were used so far, had no answer, and were unusable.

    Args:
        shards: brace pattern, file or folder.
        builder: makes documents of samples.
        batch_size: documents a batch.
    """

    def __init__(self, shards: str, builder: DocumentBuilder, batch_size: int) -> None:
        self.shards, self.builder, self.batch_size = shards, builder, batch_size
        self.documents = self.without_answers = self.skipped = 0

    def __iter__(self) -> Iterator[DocumentBatch]:
        """Raises FileNotFoundError for missing shards."""
        built = self._built()
        while window := sorted(islice(built, _WINDOW * self.batch_size), key=lambda document: document.tokens):
            for first in range(0, len(window), self.batch_size):
                batch = window[first : first + self.batch_size]
                self.documents += len(batch)
                yield pack(batch, self.shards, []).unpack()

    def _built(self) -> Iterator[BuiltDocument]:
        with tempfile.TemporaryDirectory() as cache:
            for path in tqdm(find_shards(self.shards, Path(cache)), "shards"):
                for found in read_samples(path):
                    try:
                        document = None if isinstance(found, SkipRecord) else self.builder.build(found)
                    except SkippedSampleError:
                        document = None
                    if document is None:
                        self.skipped += 1
                    elif any(block.kind == "text" and block.loss for block in document.blocks):
                        yield document
                    else:
                        self.without_answers += 1


class FeatureBatches(Dataset[FeatureBatch]):
    """The batch that the order asks for, of stored documents."""

    def __init__(self, shards: FeatureShards) -> None:
        self.shards = shards

    def __getitem__(self, batch: OrderedBatch) -> FeatureBatch:
        """The documents of a batch."""
        return collate([self.shards[number] for number in batch.samples])


class FeatureDataModule(ResumableDataModule):
    """Yields `FeatureBatch`es of shards that `hyperbagel data features` wrote.

    The order is shuffled anew each epoch, from seed and epoch alone, and batches are of documents of like length, as
    those of `InterleavedDataModule` are. A resumed run sees exactly the batches that it had not seen.

    Args:
        train: folder of feature shards.
        val: folder of those to validate on; None for none.
        batch_size: documents a batch on each rank.
        num_workers: processes that load, 0 for the main process.
        seed: of the order.
        window: batches among which documents are sorted by length; more gives less padding and less random batches.

    Examples:
        >>> data = FeatureDataModule(train="runs/features", batch_size=4)
        >>> data.val_dataloader()  # no folder to validate on
        []
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        window: int = 64,
    ) -> None:
        super().__init__()
        if min(batch_size, window) < 1 or min(num_workers, seed) < 0:
            raise ValueError("need batch_size and window >= 1, num_workers and seed >= 0")
        self.folders = {"train": train, "val": val}
        self.batch_size, self.num_workers, self.seed, self.window = batch_size, num_workers, seed, window

    def train_dataloader(self) -> OrderedLoader[FeatureBatch]:
        """The training batches that were not handed out yet."""
        shards = self._shards("train")
        order = self._order(shards, self.seed)
        self._train_loader = self._loader(shards, order, self._going_on(order), self._overfits)
        return self._train_loader

    def val_dataloader(self) -> OrderedLoader[FeatureBatch] | list[OrderedLoader[FeatureBatch]]:
        """All validation documents."""
        if not self.folders["val"]:
            return []
        shards = self._shards("val")
        return self._loader(shards, self._order(shards, None), 0, repeat=True)

    def _shards(self, split: str) -> FeatureShards:
        """Raises FileNotFoundError for a folder without shards, CheckpointError for features of another target."""
        stage: Any = getattr(self.trainer, "lightning_module", None)
        base, entries = stage.feature_needs() if hasattr(stage, "feature_needs") else (None, ())
        folder = self.folders[split]
        assert folder is not None
        return FeatureShards(folder, base, entries)

    def _order(self, shards: FeatureShards, seed: int | None) -> BatchOrder:
        rank, world = self._ranks()
        source = OrderedSource(np.asarray(shards.lengths), self.batch_size)
        return BatchOrder([source], OrderSettings(world, seed, self.window), rank)

    def _loader(
        self, shards: FeatureShards, order: BatchOrder, position: int, repeat: bool
    ) -> OrderedLoader[FeatureBatch]:
        settings = LoadSettings(self.num_workers, position=position, repeat=repeat, device=self._device)
        return OrderedLoader(order, FeatureBatches(shards), settings)

    def _fingerprint(self, order: BatchOrder) -> dict[str, Any]:
        (source,) = order.sources
        return {
            "documents": len(source.order),
            "order": zlib.crc32(source.order.tobytes()),
            "batch_size": source.batch_size,
            "window": order.settings.window,
            "seed": order.settings.seed,
            "ranks": order.settings.world,
        }
