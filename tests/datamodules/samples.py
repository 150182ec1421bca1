"""Small samples, good and bad, for the tests of the reader."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.datamodules.interleaved import InterleavedDataModule
from hyperbagel.datamodules.writer import ShardWriter


def make_png(seed: int, width: int = 24, height: int = 16) -> bytes:
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def make_sample(number: int, kind: str) -> tuple[str, dict, dict[str, bytes]]:
    """A document of one of three kinds; texts and pictures of different sizes."""
    text = {"type": "text", "text": "word " * (1 + number % 7) + str(number), "loss": False}
    images = {"0.png": make_png(number, 24 if number % 3 else 40), "1.png": make_png(number + 1000)}
    source, target = (
        {"type": "image", "file": name, "loss": loss} for name, loss in (("0.png", False), ("1.png", True))
    )
    segments = {
        "generation": [text, target],
        "editing": [source, text, target],
        "understanding": [source, text, {"type": "text", "text": f"answer {number}", "loss": True}],
    }[kind]
    used = {segment["file"] for segment in segments if "file" in segment}
    document = {"segments": segments, "meta": {"number": number}}
    return f"{kind}-{number:05d}", document, {name: data for name, data in images.items() if name in used}


def write_shards(folder: Path, kind: str, samples: int, per_shard: int = 10, first: int = 0) -> list[Path]:
    with ShardWriter(folder / f"{kind}-{{:04d}}.tar", samples_per_shard=per_shard) as writer:
        for number in range(first, first + samples):
            writer.write(*make_sample(number, kind))
    return writer.shards


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar with just these members, good or bad."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample_members(number: int, kind: str = "generation") -> list[tuple[str, bytes]]:
    key, document, images = make_sample(number, kind)
    return [(f"{key}.json", json.dumps(document).encode()), *((f"{key}.{name}", data) for name, data in images.items())]


def tensors(batch: DocumentBatch) -> list[Tensor]:
    return [
        value
        for document in batch.documents
        for segment in document
        for value in (getattr(segment, "ids", None), getattr(segment, "pixels", None))
        if value is not None
    ]


def assert_same(got: Iterable[DocumentBatch], expected: Iterable[DocumentBatch]) -> None:
    """Same samples, same order, same dropout, same numbers."""
    got, expected = list(got), list(expected)
    assert [batch.keys for batch in got] == [batch.keys for batch in expected]
    for one, other in zip(got, expected, strict=True):
        assert [[type(s) for s in d] for d in one.documents] == [[type(s) for s in d] for d in other.documents]
        for a, b in zip(tensors(one), tensors(other), strict=True):
            assert torch.equal(a, b)


def epoch(module: InterleavedDataModule) -> list[DocumentBatch]:
    module.setup()
    return list(module.train_dataloader())
