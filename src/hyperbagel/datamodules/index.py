"""A small index of each shard: where its samples are, how long their texts and how large their pictures.

With it the order of an epoch is computed instead of streamed: that is what makes shuffling global, buckets exact, and
resuming instant. A shard is scanned once; the index is kept in a cache folder until the shard changes.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm import tqdm

from hyperbagel.bagel.images import ImageError, image_size
from hyperbagel.datamodules.documents import TextPart
from hyperbagel.datamodules.shards import SampleSpan, find_samples
from hyperbagel.datamodules.skipped import Skip, SkippedSampleError, SkipRecord, image_skip
from hyperbagel.datamodules.tar import TarContent
from hyperbagel.files import write_bytes

log = logging.getLogger(__name__)

_VERSION = 4
_THREADS = 4
_ARRAYS = ("spans", "text_bytes", "has_loss", "images", "sizes", "lots")
_LOTS = 2**48


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """What is known of a shard's n good samples without reading it again.

    spans: (n, 2) int64, first byte and byte after the last; text_bytes: (n,) int64, UTF-8 length of all texts;
    has_loss: (n,) bool, whether anything is to be learnt; images: (n,) int64, pictures a sample;
    sizes: (sum of images, 2) int64, width and height of each picture; lots: (n,) float64, a number in [0, 1) that a
    sample draws by its key and keeps wherever it lies; skipped: the bad samples.
    """

    spans: NDArray[np.int64]
    text_bytes: NDArray[np.int64]
    has_loss: NDArray[np.bool_]
    images: NDArray[np.int64]
    sizes: NDArray[np.int64]
    lots: NDArray[np.float64]
    skipped: tuple[SkipRecord, ...] = ()

    def __len__(self) -> int:
        return len(self.spans)


def index_shard(path: Path) -> ShardIndex:
    """Scan a shard: check every document and the header of every picture. Pixels are not decoded."""
    rows: list[tuple[int, int, int, bool, int, int]] = []
    sizes: list[tuple[int, int]] = []
    skipped: list[SkipRecord] = []
    keys: set[str] = set()
    with path.open("rb") as file:
        for span in find_samples(file, os.fstat(file.fileno()).st_size, str(path)):
            if isinstance(span, SkipRecord):
                skipped.append(span)
                continue
            twice = span.key in keys
            try:
                if twice:
                    raise SkippedSampleError(Skip.DUPLICATE_KEY, "an earlier sample has the same key")
                text, has_loss, sizes_here = _examine(file, span)
            except SkippedSampleError as error:
                place = f"{path}: {span.key!r}" + (f" at byte {span.start}" if twice else "")
                skipped.append(SkipRecord(error.cause, place, str(error)))
                continue
            keys.add(span.key)
            rows.append((span.start, span.end, text, has_loss, len(sizes_here), _lot(span.key)))
            sizes += sizes_here
    table = np.array(rows, dtype=np.int64).reshape(-1, 6)
    return ShardIndex(
        spans=table[:, :2],
        text_bytes=table[:, 2],
        has_loss=table[:, 3].astype(bool),
        images=table[:, 4],
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        lots=table[:, 5] / _LOTS,
        skipped=tuple(skipped),
    )


def _lot(key: str) -> int:
    """A number below 2**48, by a hash of a sample's key."""
    return int.from_bytes(hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=6).digest(), "big")


def _examine(file: BinaryIO, span: SampleSpan) -> tuple[int, bool, list[tuple[int, int]]]:
    """Bytes of text, whether there is a loss, and the size of each picture."""
    document = span.document(file)
    sizes = [_picture_size(file, span, image.file) for image in document.images]
    text = sum(len(part.text.encode()) for part in document.parts if isinstance(part, TextPart))
    return text, any(part.loss for part in document.parts), sizes


def _picture_size(file: BinaryIO, span: SampleSpan, name: str) -> tuple[int, int]:
    """Width and height in pixels."""
    try:
        return image_size(io.BufferedReader(TarContent(file, span.members[name])), name=repr(name))
    except ImageError as error:
        raise image_skip(error) from error


def load_indexes(paths: Sequence[Path], cache_dir: Path) -> list[ShardIndex]:
    """The index of each shard, from the cache where the shard has not changed since, otherwise scanned and kept."""

    def load(path: Path) -> ShardIndex:
        cached = _cache_file(path, cache_dir)
        try:
            return _read_index(cached)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):  # not there yet, or broken
            index = index_shard(path)
            _write_index(index, cached)
            return index

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(tqdm(pool.map(load, paths), "index shards", len(paths), leave=False, disable=len(paths) < 10))


def _cache_file(path: Path, cache_dir: Path) -> Path:
    stat = path.stat()
    identity = f"{_VERSION} {path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    return cache_dir / "index" / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.safetensors"


def _read_index(cached: Path) -> ShardIndex:
    with safe_open(cached, "np") as file:
        records = json.loads(file.metadata()["skipped"])
        skipped = tuple(SkipRecord(Skip(cause), sample, reason) for cause, sample, reason in records)
        return ShardIndex(**{name: file.get_tensor(name) for name in _ARRAYS}, skipped=skipped)


def _write_index(index: ShardIndex, cached: Path) -> None:
    records = json.dumps([[record.cause, record.sample, record.reason] for record in index.skipped])
    arrays = {name: np.ascontiguousarray(getattr(index, name)) for name in _ARRAYS}
    content = save(arrays, {"skipped": records})
    try:
        write_bytes(cached, content)
    except OSError as error:
        log.warning("the index of a shard is not kept (%s); it is scanned again next time", error)
