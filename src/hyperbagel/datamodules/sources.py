"""Where samples come from: shards, or an object that draws them by index."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperbagel.bagel.images import ImageTransform
from hyperbagel.datamodules.index import ShardIndex, load_indexes
from hyperbagel.datamodules.shards import Sample, SampleSpan, find_samples, find_shards
from hyperbagel.datamodules.skipped import Skip, SkippedSampleError, SkipRecord

_OPEN_FILES = 64
_WHOLE = (0.0, 1.0)


@dataclass(frozen=True)
class Source:
    """One of the data sources of a run, as configured."""

    name: str
    """Name shown in logs and in each batch."""
    shards: str | list[str] | None = None
    """A brace pattern, a folder or a URL, or a list of them."""
    samples: Any = None
    """Instead of shards, an object (by class_path) with `__len__` and `__getitem__(i)` -> {"__key__": str, "json":
    document, "<file>": encoded bytes or (H, W, 3) uint8}."""
    weight: float | None = None
    """Share of batches among the sources (all or none have one; none: every sample once per epoch; 0: switched off)."""
    batch_size: int | None = None
    """Documents per batch of this source, where it is not the module's."""
    vit_transform: ImageTransform | None = None
    """Resize rules of the ViT's pictures of this source, where they are not the module's."""
    part: tuple[float, float] = _WHOLE
    """Which of the shards' samples belong to the source. Each draws a number from 0 to 1 by a hash of its key. Read are
    those from the first limit on and below the second. So [0, 0.9] for training and [0.9, 1] for testing share none and
    leave none out."""

    def __post_init__(self) -> None:
        """Refuse what cannot be a source."""
        if (self.shards is None) == (self.samples is None):
            remedy = "give one of them" if self.shards is None else "set the other one to null"
            raise ValueError(f"source {self.name!r} needs either `shards` or `samples`: {remedy}")
        if self.samples is not None and not (hasattr(self.samples, "__len__") and hasattr(self.samples, "__getitem__")):
            raise ValueError(f"source {self.name!r}: `samples` needs __len__ and __getitem__, got {self.samples!r}")
        if self.weight is not None and not self.weight >= 0:
            raise ValueError(f"source {self.name!r}: `weight` must not be negative, got {self.weight}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"source {self.name!r}: `batch_size` must be at least 1, got {self.batch_size}")
        low, high = self.part
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"source {self.name!r}: `part` needs two limits from 0 to 1 in order, got {list(self.part)}"
            )
        if self.samples is not None and self.part != _WHOLE:
            raise ValueError(f"source {self.name!r}: `part` is for shards; `samples` need a split of their own")


class Samples(ABC):
    """Samples by index. skipped: those that are known to be bad and not among them."""

    skipped: list[SkipRecord]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Sample:
        """One sample; raises SkippedSampleError when it cannot be read."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Where a sample is, for people."""

    @abstractmethod
    def size_order(self, latent: ImageTransform, vit: ImageTransform) -> NDArray[np.int64]:
        """A number for each sample; samples of near numbers have like pictures and texts of like length."""


class ShardSamples(Samples):
    """The samples of a list of shards, read at random.

    with_loss: leave out samples without anything to learn (they are in `skipped` then, with the unreadable ones);
    part: limits of the lots that are read, see `Source`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        indexes: Sequence[ShardIndex],
        with_loss: bool,
        part: tuple[float, float] = _WHOLE,
    ) -> None:
        self._paths = list(paths)
        counts = [len(index) for index in indexes]
        shard = np.repeat(np.arange(len(paths)), counts)
        spans = np.concatenate([index.spans for index in indexes])
        images = np.concatenate([index.images for index in indexes])
        lots = np.concatenate([index.lots for index in indexes])
        inside = (part[0] <= lots) & (lots < part[1])
        keep = inside & np.concatenate([index.has_loss for index in indexes]) if with_loss else inside
        self.skipped = [record for index in indexes for record in index.skipped]
        for i in np.flatnonzero(inside & ~keep):
            place = _place(self._paths[shard[i]], spans[i])
            self.skipped.append(SkipRecord(Skip.NO_LOSS, place, "no segment of the document has a loss"))
        self._shard, self._spans, self._images = shard[keep], spans[keep], images[keep]
        self._text_bytes = np.concatenate([index.text_bytes for index in indexes])[keep]
        self._sizes = np.concatenate([index.sizes for index in indexes])[np.repeat(keep, images)]
        self._files: OrderedDict[int, io.FileIO] = OrderedDict()

    def __len__(self) -> int:
        return len(self._shard)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}

    def place(self, index: int) -> str:
        """Shard and byte."""
        return _place(self._paths[self._shard[index]], self._spans[index])

    def read(self, index: int) -> Sample:
        """One sample. Raises SkippedSampleError when the shard is no longer what was indexed."""
        start, end = (int(byte) for byte in self._spans[index])
        shard = int(self._shard[index])
        # pread has no file position, so processes that were forked may share the open file.
        data = os.pread(self._file(shard).fileno(), end - start, start)
        for found in find_samples(io.BytesIO(data), len(data), str(self._paths[shard])):
            if isinstance(found, SampleSpan):
                return found.read(io.BytesIO(data))
        raise SkippedSampleError(Skip.DAMAGED_TAR, "the shard changed after it was indexed")

    def _file(self, shard: int) -> io.FileIO:
        if shard not in self._files:
            self._files[shard] = self._paths[shard].open("rb", buffering=0)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(shard)
        return self._files[shard]

    def size_order(self, latent: ImageTransform, vit: ImageTransform) -> NDArray[np.int64]:
        """By number of pictures, then their pixels and widths after the resize, then length of text."""
        sizes, where = np.unique(self._sizes, axis=0, return_inverse=True)
        resized = np.array([(*latent.size(*wh), *vit.size(*wh)) for wh in sizes.tolist()], np.int64).reshape(-1, 4)
        pixels = (resized[:, 0] * resized[:, 1])[where.reshape(-1)]
        widths = resized[:, 0][where.reshape(-1)]
        keys = (self._text_bytes, _sums(widths, self._images), _sums(pixels, self._images), self._images)
        order = np.empty(len(self), np.int64)
        order[np.lexsort(keys)] = np.arange(len(self))
        return order


def _sums(values: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums over consecutive runs of `counts` values."""
    totals = np.concatenate([[0], np.cumsum(values)])
    ends = np.cumsum(counts)
    return np.asarray(totals[ends] - totals[ends - counts])


def _place(path: Path, span: NDArray[np.int64]) -> str:
    return f"{path} at byte {span[0]}"


class DrawnSamples(Samples):
    """The samples of an object that draws them by index; all count as equally long."""

    def __init__(self, name: str, samples: Any) -> None:
        self._name, self._samples = name, samples
        self.skipped: list[SkipRecord] = []

    def __len__(self) -> int:
        return len(self._samples)

    def place(self, index: int) -> str:
        """Source and index."""
        return f"{self._name}[{index}]"

    def read(self, index: int) -> Sample:
        """One sample as drawn."""
        drawn = self._samples[index]
        if not isinstance(drawn, Mapping) or "__key__" not in drawn:
            raise SkippedSampleError(Skip.BAD_SCHEMA, "a drawn sample must be a dict with a `__key__`")
        return Sample(
            str(drawn["__key__"]), {name: value for name, value in drawn.items() if not name.startswith("__")}
        )

    def size_order(self, latent: ImageTransform, vit: ImageTransform) -> NDArray[np.int64]:
        """All alike."""
        return np.zeros(len(self), np.int64)


def open_source(source: Source, cache_dir: Path, with_loss: bool) -> Samples:
    """The samples of a configured source; scans shards that were not seen before.

    Raises FileNotFoundError for missing shards and ValueError when there is not one good sample.
    """
    samples: Samples
    if source.shards is None:
        samples = DrawnSamples(source.name, source.samples)
    else:
        paths = find_shards(source.shards, cache_dir)
        samples = ShardSamples(paths, load_indexes(paths, cache_dir), with_loss, source.part)
    if len(samples) == 0:
        reasons = "; ".join(f"{record.sample}: {record.reason}" for record in samples.skipped[:3])
        empty = "it is empty" if source.part == _WHOLE else f"none lies in its part {list(source.part)}; widen it"
        raise ValueError(f"source {source.name!r} has no usable sample ({reasons or empty})")
    return samples
