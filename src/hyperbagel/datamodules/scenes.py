"""The scenes world as a data source: the same samples drawn on the fly or written as WebDataset shards."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import webdataset as wds
from PIL import Image
from tqdm import tqdm

from hyperbagel.files import whole_file
from hyperbagel.scenes import KINDS, sample
from hyperbagel.scenes.heldout import check_split

DEFAULT_WEIGHTS: Final[dict[str, float]] = {
    "generation": 2, "detailed": 2, "editing": 2, "multi_turn": 1,
    "caption": 2, "question": 1, "yes_no": 1, "dialogue": 1, "reading": 1, "translation": 1,
}  # fmt: skip


class SceneSource:
    """Samples drawn when asked for, by index; sample i is the same at every time and in every process.

    Each is a dict {"__key__": str, "json": document as a dict, "0.png": (H, W, 3) uint8 RGB, "1.png": ...}: what a
    decoded WebDataset sample of `write_scenes` holds, without the cost of PNG.

    Args:
        split: "train", "val" or "test"; train lacks some combinations of the others, which are held out for them (see
            `hyperbagel.scenes.heldout`).
        size: number of samples.
        seed: another seed gives other samples.
        weights: share of each kind of document (one or more of `hyperbagel.scenes.KINDS`), not necessarily summing
            to 1. None is a mix of all kinds.
    """

    def __init__(
        self, split: str = "train", size: int = 1_000_000, seed: int = 0, weights: Mapping[str, float] | None = None
    ) -> None:
        weights = DEFAULT_WEIGHTS if weights is None else weights
        check_split(split)
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        if unknown := set(weights) - set(KINDS):
            raise ValueError(f"unknown kinds of documents {sorted(unknown)}: use some of {', '.join(KINDS)}")
        if not weights or min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise ValueError(f"weights must not be negative, with at least one above 0: {dict(weights)}")
        self.split, self.size, self.seed = split, size, seed
        total = sum(weights.values())
        self._kinds = [(kind, edge / total) for kind, edge in zip(weights, accumulate(weights.values()), strict=True)]

    def __len__(self) -> int:
        """Number of samples."""
        return self.size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All samples in order."""
        return (self[index] for index in range(self.size))

    def kind(self, index: int) -> str:
        """The kind of sample `index`."""
        digest = blake2b(f"{self.split}/{self.seed}/{index}".encode(), digest_size=4).digest()
        position = int.from_bytes(digest) / 2**32
        return next((kind for kind, edge in self._kinds if position < edge), self._kinds[-1][0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample `index`. Raises IndexError outside of [0, size)."""
        if not 0 <= index < self.size:
            raise IndexError(f"sample {index} of {self.size}")
        drawn = sample(self.split, self.seed, index, self.kind(index))
        return {"__key__": drawn.key, "json": drawn.document, **drawn.images}


def write_scenes(
    out: str | Path,
    split: str = "train",
    size: int = 10_000,
    seed: int = 0,
    weights: Mapping[str, float] | None = None,
    shard_size: int = 1000,
) -> list[Path]:
    """Write the samples of `SceneSource` as WebDataset shards `<split>-000000.tar`, ... into the folder `out`.

    A shard appears under its name only when it is complete. Returns the shards' paths. Raises FileExistsError if a
    shard of this split is already there, WriteError for a full disk, and ValueError as `SceneSource` does.
    """
    source = SceneSource(split, size, seed, weights)
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, not {shard_size}")
    folder = Path(out)
    if present := sorted(folder.glob(f"{split}-*.tar")):
        raise FileExistsError(f"{present[0]} already exists: remove the {split} shards or choose another folder")
    shards = []
    with tqdm(total=size, desc=f"{split} scenes", unit="sample") as progress:
        for number, start in enumerate(range(0, size, shard_size)):
            path = folder / f"{split}-{number:06d}.tar"
            with (
                whole_file(path) as partial,
                partial.open("wb") as stream,
                wds.TarWriter(stream, encoder=False, mtime=0) as writer,
            ):
                for index in range(start, min(start + shard_size, size)):
                    writer.write(_encode(source[index]))
                    progress.update()
            shards.append(path)
    return shards


def _encode(drawn: dict[str, Any]) -> dict[str, Any]:
    """The sample with JSON and PNG bytes for members."""
    encoded = {"__key__": drawn["__key__"], "json": json.dumps(drawn["json"], ensure_ascii=False).encode()}
    for name, image in drawn.items():
        if name.endswith(".png"):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG", compress_level=1)
            encoded[name] = buffer.getvalue()
    return encoded
