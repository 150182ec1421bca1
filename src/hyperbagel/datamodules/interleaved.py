"""The data module of all stages: interleaved documents from any mix of sources, resumable to the batch."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hyperbagel.bagel.checkpoint import read_config
from hyperbagel.bagel.shipped import cache_folder, resolve
from hyperbagel.datamodules.batch_order import BatchOrder, OrderedSource, OrderSettings
from hyperbagel.datamodules.loader import BatchDataset, DocumentLoader, Monitor, OpenSource, ReaderSettings
from hyperbagel.datamodules.pipeline import CondDropout, DocumentBuilder, Formatting, check_vit_pictures
from hyperbagel.datamodules.resumable import LoadSettings, ResumableDataModule
from hyperbagel.datamodules.skipped import SkipLog
from hyperbagel.datamodules.sources import Samples, Source, open_source
from hyperbagel.datamodules.vocabulary import source_words
from hyperbagel.files import require_all
from hyperbagel.training.stage import student_updates

log = logging.getLogger(__name__)

_FORMATTING = Formatting()
_DROPOUT = CondDropout()
_READER = ReaderSettings()


@dataclass(frozen=True)
class Batching:
    """How training batches are put together."""

    batch_size: int = 8
    """Documents per batch on each rank."""
    times: int = 1
    """Factor of all batch sizes, also of those that sources have of their own: a GPU wants much larger ones."""
    batches_per_epoch: int | None = None
    """Batches per epoch on each rank; None: one pass over the data (over the largest source when the sources have
    weights)."""
    window: int = 64
    """Batches among which documents are sorted by size; more gives less padding and less random batches."""
    seed: int = 0
    """Seed of order and dropout."""

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        least = min(self.batch_size, self.times, self.window, self.batches_per_epoch or 1)
        if least < 1 or self.seed < 0:
            raise ValueError(f"batching needs positive sizes and a seed that is not negative, got {self}")


_BATCHING = Batching()


class InterleavedDataModule(ResumableDataModule):
    """Yields `DocumentBatch`es of one source each, ready for the model.

    The sequence of batches depends on the configuration, the rank and nothing else; the state is one number. A run
    that was stopped anywhere and resumed sees exactly the batches that it had not seen, in the same order, also with
    another number of workers. Validation and test read the sources one after another in order and without dropout.
    Training documents in which the stage has nothing to learn are left out, and counted as `nothing_to_learn`.

    Args:
        formatting: tokenizer, resize rules, longest document; what it leaves open is that of the stage's model.
        train: sources that are trained on.
        val: sources of validation.
        test: sources of testing, and of prediction.
        batching: sizes, epoch length and seed.
        dropout: of conditions in training documents that generate pictures.
        reader: worker processes and limits.
        rank: number of the part of the data that this process reads, from 0; by default what the trainer says.
        world_size: number of these parts; by default what the trainer says.
    """

    def __init__(
        self,
        formatting: Formatting = _FORMATTING,
        train: list[Source] | None = None,
        val: list[Source] | None = None,
        test: list[Source] | None = None,
        batching: Batching = _BATCHING,
        dropout: CondDropout = _DROPOUT,
        reader: ReaderSettings = _READER,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__()
        # The tokenizer works on one text at a time here; its threads would only make forking workers unsafe.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.sources = {"train": train or [], "val": val or [], "test": test or []}
        for split, sources in self.sources.items():
            if len({source.name for source in sources}) < len(sources):
                raise ValueError(f"two {split} sources have the same name")
        if (rank is None) != (world_size is None):
            raise ValueError("give both `rank` and `world_size`, or neither")
        self.batching, self.dropout, self.reader = batching, dropout, reader
        self.rank, self.world_size = rank, world_size
        self.formatting = formatting
        self.builder: DocumentBuilder | None = None
        self._built_for: str | None = None
        self.skips = SkipLog(reader.max_skipped)
        self._open: dict[str, list[OpenSource]] = {}

    def prepare_data(self) -> None:
        """Copy remote shards and scan new ones, in one process of each machine. Names all shards that are missing."""
        self._build()  # refuses what does not fit the model before anything is scanned
        splits = self._splits(self.trainer.state.fn if self.trainer is not None else None)
        require_all(
            partial(open_source, source, self._cache_dir, with_loss=split == "train")
            for split in splits
            for source in self.sources[split]
        )

    def setup(self, stage: str | None = None) -> None:
        """Open the sources of a stage.

        Raises TooManySkippedError when too many of their samples are unusable, ValueError for a formatting that does
        not fit the stage's model, or leaves something open without one.
        """
        self._build()
        for split in self._splits(stage):
            if split in self._open:
                continue
            self._open[split] = [
                OpenSource(
                    source.name, open_source(source, self._cache_dir, with_loss=split == "train"), source.vit_transform
                )
                for source in self.sources[split]
            ]
            for source in self._open[split]:
                self.skips.add(source.samples.skipped)
                self._warn_of_words(source)

    def opened(self, split: str) -> dict[str, Samples]:
        """The samples of each source of a split that was set up, by name."""
        return {source.name: source.samples for source in self._open.get(split, [])}

    def train_dataloader(self) -> DocumentLoader:
        """The training batches that were not handed out yet."""
        order = self._order("train", self.batching.seed, self.batching.batches_per_epoch)
        position = self._going_on(order)
        dataset = self._dataset("train", self.dropout)
        self._train_loader = loader = self._loader(order, dataset, position, self._overfits)
        return loader

    def val_dataloader(self) -> DocumentLoader | list[DocumentLoader]:
        """All validation documents."""
        return self._evaluation("val")

    def test_dataloader(self) -> DocumentLoader | list[DocumentLoader]:
        """All test documents."""
        return self._evaluation("test")

    def predict_dataloader(self) -> DocumentLoader | list[DocumentLoader]:
        """All test documents."""
        return self._evaluation("test")

    def state_dict(self) -> dict[str, Any]:
        """Number of batches consumed, what the data was, and the samples skipped so far."""
        state = super().state_dict()
        return state if self._train_loader is None else state | {"skipped": self.skips.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a run stopped; checked against the data when training begins."""
        super().load_state_dict(state_dict)
        self.skips.load_state_dict(state_dict.get("skipped", {}))

    def _build(self) -> DocumentBuilder:
        """What makes documents of samples, as the stage's model reads them."""
        folder = getattr(self.trainer.lightning_module, "folder", None) if self.trainer is not None else None
        if self.builder is None or folder != self._built_for:
            formatting = self.formatting
            if folder is not None:
                formatting = formatting.for_model(folder)
                config = read_config(resolve(folder))
                for source in (source for sources in self.sources.values() for source in sources):
                    if source.vit_transform is not None:
                        check_vit_pictures(f"vit_transform of source {source.name!r}", source.vit_transform, config)
            self.builder, self._built_for = DocumentBuilder(formatting), folder
        return self.builder

    def _warn_of_words(self, source: OpenSource) -> None:
        """Tell which words of a source's texts the tokenizer of a small world spells in bytes."""
        found = source_words(source.samples, self._build().tokenizer)
        if found.spelled and (self.trainer is None or self.trainer.is_global_zero):
            log.warning("source %r: %s; the model has to learn them letter by letter", source.name, found)

    @staticmethod
    def _splits(stage: str | None) -> tuple[str, ...]:
        """The splits that a stage of the trainer reads; all of them when it is not known."""
        splits = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        return splits.get(stage or "", ("train", "val", "test"))

    @property
    def _cache_dir(self) -> Path:
        return Path(self.reader.cache_dir) if self.reader.cache_dir else cache_folder()

    def _evaluation(self, split: str) -> DocumentLoader | list[DocumentLoader]:
        if not self.sources[split]:
            return []
        order = self._order(split, None, None)
        dataset = self._dataset(split, None)
        return self._loader(order, dataset, 0, repeat=True)

    def _loader(self, order: BatchOrder, dataset: BatchDataset, position: int, repeat: bool) -> DocumentLoader:
        settings = LoadSettings(self.reader.num_workers, self.reader.prefetch, position, repeat, self._device)
        return DocumentLoader(order, dataset, settings, self._monitor())

    def _order(self, split: str, seed: int | None, batches: int | None) -> BatchOrder:
        """The batches of a split; seed: None reads everything once and in order."""
        if split not in self._open:
            raise RuntimeError("call setup() first")
        if not self._open[split]:
            raise ValueError(f"no sources for {split}; set `data.{split}`")
        builder, ordered = self._build(), []
        for source, opened in zip(self.sources[split], self._open[split], strict=True):
            sizes = opened.samples.size_order(builder.latent, source.vit_transform or builder.vit)
            weight = source.weight if seed is not None else None
            batch_size = (source.batch_size or self.batching.batch_size) * self.batching.times
            ordered.append(OrderedSource(sizes, batch_size, weight))
        rank, world = self._ranks()
        return BatchOrder(ordered, OrderSettings(world, seed, self.batching.window, batches), rank)

    def _ranks(self) -> tuple[int, int]:
        if self.rank is not None and self.world_size is not None:
            return self.rank, self.world_size
        return super()._ranks()

    def _dataset(self, split: str, dropout: CondDropout | None) -> BatchDataset:
        stage = self.trainer.lightning_module if self.trainer is not None else None
        learns_from = getattr(stage, "learns_from", None) if split == "train" else None
        return BatchDataset(self._open[split], self._build(), self.batching.seed, dropout, learns_from)

    def _fingerprint(self, order: BatchOrder) -> dict[str, Any]:
        """What the sequence of batches depends on."""
        sources: Sequence[OrderedSource] = order.sources
        return {
            "sources": [
                {
                    "name": source.name,
                    "samples": len(ordered.order),
                    "order": zlib.crc32(ordered.order.tobytes()),
                    "batch_size": ordered.batch_size,
                    "weight": ordered.weight,
                }
                | ({"part": list(source.part)} if source.part != (0, 1) else {})
                for source, ordered in zip(self.sources["train"], sources, strict=True)
            ],
            "batches_per_epoch": len(order),
            "window": order.settings.window,
            "seed": order.settings.seed,
            "ranks": order.settings.world,
        }

    def _monitor(self) -> Monitor:
        every = getattr(self.trainer, "log_every_n_steps", 0) or 50
        return Monitor(self.skips, self._report, every)

    def _report(self, metrics: dict[str, float]) -> None:
        """Log against student updates where the stage counts them."""
        if self.trainer is None or self.trainer.sanity_checking:
            return
        step = student_updates(self.trainer.lightning_module)
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=step)
