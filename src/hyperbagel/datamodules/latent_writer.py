"""Writes the latents of pictures beside them into copies of shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from hyperbagel.bagel.model import Bagel
from hyperbagel.datamodules.latents import ENDING, latent_member
from hyperbagel.datamodules.pipeline import DocumentBuilder, member_picture, pixels_of
from hyperbagel.datamodules.shards import Sample, find_rewritten, read_samples
from hyperbagel.datamodules.skipped import SkippedSampleError, SkipRecord
from hyperbagel.datamodules.writer import ShardWriter


@dataclass
class LatentSummary:
    """What became of the samples."""

    documents: int = 0
    """Documents written."""
    pictures: int = 0
    """Pictures whose latents were written."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Unusable samples, by cause."""

    def __str__(self) -> str:
        causes = ", ".join(f"{count:,} {cause}" for cause, count in self.skipped.items())
        left_out = f"; left out: {causes}" if causes else ""
        return f"{self.documents:,} documents with latents of {self.pictures:,} pictures written{left_out}"


def write_latents(
    model: Bagel, builder: DocumentBuilder, shards: str | Sequence[str], out: Path, batch_size: int = 16
) -> LatentSummary:
    """Copy shards into `out` with the latents of all pictures that the autoencoder reads, in float16.

    builder: resizes the pictures as training does; batch_size: documents at once. A shard that is there is left alone.
    Raises FileNotFoundError for missing shards, ValueError when `out` holds them.
    """
    summary = LatentSummary()
    for path in tqdm(find_rewritten(shards, out / ".shards", out), "shards"):
        if (target := out / path.name).exists():
            continue
        samples = _usable(path, summary)
        with ShardWriter(f"{out}/{path.stem}.{{:06d}}.part", 2**62, 2**62) as writer:
            while batch := list(islice(samples, batch_size)):
                _write(model, builder, batch, writer, summary)
        if writer.shards:
            writer.shards[0].replace(target)
    return summary


def _usable(path: Path, summary: LatentSummary) -> Iterator[Sample]:
    for found in read_samples(path):
        if isinstance(found, SkipRecord):
            summary.skipped[found.cause] += 1
        else:
            yield found


@torch.inference_mode()
def _write(
    model: Bagel, builder: DocumentBuilder, batch: Sequence[Sample], writer: ShardWriter, summary: LatentSummary
) -> None:
    """Write samples with the latents of their pictures."""
    autoencoder = builder.formatting.autoencoder
    assert autoencoder is not None  # the formatting is that of a model
    pixels: dict[tuple[str, str], NDArray[np.uint8]] = {}
    usable = []
    for sample in batch:
        document = sample.document()
        try:
            pixels |= {
                (sample.key, file): pixels_of(builder.latent.resize(member_picture(file, sample.members[file])))
                for file in (image.file for image in document.images if document.generates)
            }
            usable.append((sample, document))
        except SkippedSampleError as error:
            summary.skipped[error.cause] += 1
    tensors = [torch.from_numpy(picture).float().div_(127.5).sub_(1) for picture in pixels.values()]
    latents = dict(zip(pixels, model.encode(tensors), strict=True))
    for sample, document in usable:
        files = dict.fromkeys(image.file for image in document.images if document.generates)
        members = {
            f"{file}{ENDING}": latent_member(latents[sample.key, file], autoencoder, pixels[sample.key, file].shape[1:])
            for file in files
        }
        writer.rewrite(sample, document, members)
        summary.documents += 1
        summary.pictures += len(members)
