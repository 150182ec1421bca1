"""Stored hidden states of a target, for training a draft head without running the target's layers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader, DistributedSampler
from tqdm import tqdm

from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.datamodules.packing import pack
from hyperbagel.datamodules.pipeline import BuiltDocument, DocumentBuilder
from hyperbagel.datamodules.shards import find_shards, read_samples
from hyperbagel.datamodules.skipped import SkippedSampleError, SkipRecord
from hyperbagel.draft.batch import FeatureBatch
from hyperbagel.draft.store import FeatureShards, collate


class DocumentReader:
    """Batches of all documents with answers, once and in order: what `draft.store.write_features` runs the target over.

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
        while batch := list(islice(built, self.batch_size)):
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


class FeatureDataModule(L.LightningDataModule):
    """Yields `FeatureBatch`es of shards that `hyperbagel data features` wrote.

    The order is shuffled anew each epoch, from seed and epoch alone. A run resumes at the beginning of an epoch; to the
    batch only documents do (`InterleavedDataModule`).

    Args:
        train: folder of feature shards.
        val: folder of those to validate on; None for none.
        batch_size: documents a batch on each rank.
        num_workers: processes that load, 0 for the main process.
        seed: of the order.

    Examples:
        >>> data = FeatureDataModule(train="runs/features", batch_size=4)
        >>> data.val_dataloader()  # no folder to validate on
        []
    """

    def __init__(
        self, train: str, val: str | None = None, batch_size: int = 8, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        self.folders = {"train": train, "val": val}
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    def train_dataloader(self) -> DataLoader[FeatureBatch]:
        """Shuffled batches of this rank."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[FeatureBatch] | list[DataLoader[FeatureBatch]]:
        """All validation documents in order."""
        return self._loader("val", shuffle=False) if self.folders["val"] else []

    def _loader(self, split: str, shuffle: bool) -> DataLoader[FeatureBatch]:
        """Raises FileNotFoundError for a folder without shards, CheckpointError for features of another target."""
        stage: Any = getattr(self.trainer, "lightning_module", None)
        base, entries = stage.feature_needs() if hasattr(stage, "feature_needs") else (None, ())
        folder = self.folders[split]
        assert folder is not None
        shards = FeatureShards(folder, base, entries)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        sampler: DistributedSampler[FeatureBatch] = DistributedSampler(
            shards, num_replicas=world, rank=rank, shuffle=shuffle, seed=self.seed
        )
        return DataLoader(shards, self.batch_size, sampler=sampler, collate_fn=collate, num_workers=self.num_workers)
