"""Packs a batch into few tensors for the way from a worker to the main process.

A batch has hundreds of small tensors, each of which would cost a shared-memory file. All pictures travel as one
uint8 tensor and all token ids as one int64 tensor instead, stored latents as one float16 tensor, and are cut up on
arrival.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperbagel.bagel.segments import DocumentBatch, DroppedSegment, ImageSegment, Segment, TextSegment, ViTSegment
from hyperbagel.bagel.transfer import moved
from hyperbagel.datamodules.pipeline import BuiltDocument, Kind
from hyperbagel.datamodules.skipped import SkipRecord

_HOST: Final = torch.device("cpu")


class _Place(NamedTuple):
    """Where a block's numbers are: offset in `ids` for texts, in `pixels` for pictures; latent: shape, and offset in
    `latents`."""

    kind: Kind
    loss: bool
    shape: tuple[int, ...] = ()
    offset: int = 0
    prefix: int = 0
    latent: tuple[tuple[int, ...], int] | None = None


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A batch as few tensors and a list of places.

    ids: (all tokens,) int64; pixels: (all channels of all pictures,) uint8; latents: (all channels of all stored
    latents,) float16; tokens: (documents,) length of each; skipped: samples that turned out to be unusable.

    Examples:
        >>> from hyperbagel.datamodules.packing import pack
        >>> packed = pack([built, built], "scenes", [])
        >>> len(packed.unpack()), packed.pixels.dtype
        (2, torch.uint8)
    """

    places: tuple[tuple[_Place, ...], ...]
    ids: Tensor
    pixels: Tensor
    latents: Tensor
    keys: tuple[str, ...]
    metas: tuple[dict[str, Any], ...]
    tokens: tuple[int, ...]
    source: str
    skipped: tuple[SkipRecord, ...]

    def pin_memory(self) -> PackedBatch:
        """The same batch with pictures in page-locked memory, from where they go to a GPU by themselves.

        PyTorch's loaders call it, in a thread beside the trainer's.
        """
        return replace(self, pixels=self.pixels.pin_memory(), latents=self.latents.pin_memory())

    def unpack(self, device: torch.device = _HOST) -> DocumentBatch:
        """The batch as stages want it, pictures as float32 in [-1, 1], on a device, where they are converted too."""
        pixels = moved(self.pixels, device).float().div_(255).sub_(0.5).div_(0.5)
        latents = moved(self.latents, device).float()
        documents = tuple([self._segment(place, pixels, latents) for place in document] for document in self.places)
        return DocumentBatch(documents=documents, keys=self.keys, metas=self.metas, source=self.source)

    def _segment(self, place: _Place, pixels: Tensor, latents: Tensor) -> Segment:
        if place.kind == "dropped":
            return DroppedSegment()
        values = _cut(self.ids if place.kind == "text" else pixels, place.shape, place.offset)
        if place.kind == "text":
            return TextSegment(values, place.loss, place.prefix)
        if place.kind == "vit":
            return ViTSegment(values)
        return ImageSegment(values, place.loss, None if place.latent is None else _cut(latents, *place.latent))


def _cut(numbers: Tensor, shape: tuple[int, ...], offset: int) -> Tensor:
    return numbers[offset : offset + math.prod(shape)].view(shape)


def pack(documents: Sequence[BuiltDocument], source: str, skipped: Sequence[SkipRecord]) -> PackedBatch:
    """Put the documents of a batch together; a picture that occurs in several blocks is stored once."""
    ids, pixels, latents = _Store(np.int64), _Store(np.uint8), _Store(np.float16)
    places = []
    for document in documents:
        row = []
        for block in document.blocks:
            if block.data is None:
                row.append(_Place(block.kind, block.loss))
                continue
            store = ids if block.kind == "text" else pixels
            latent = None if block.latent is None else (block.latent.shape, latents.add(block.latent))
            row.append(_Place(block.kind, block.loss, block.data.shape, store.add(block.data), block.prefix, latent))
        places.append(tuple(row))
    return PackedBatch(
        places=tuple(places),
        ids=ids.tensor(),
        pixels=pixels.tensor(),
        latents=latents.tensor(),
        keys=tuple(document.key for document in documents),
        metas=tuple(document.meta for document in documents),
        tokens=tuple(document.tokens for document in documents),
        source=source,
        skipped=tuple(skipped),
    )


class _Store:
    """Arrays put end to end."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._dtype = dtype
        self._offsets: dict[int, int] = {}
        self._arrays: list[NDArray[Any]] = []
        self._size = 0

    def add(self, array: NDArray[Any]) -> int:
        """Offset of the array; the same array is stored once (it stays alive here, so its id is unique)."""
        if id(array) not in self._offsets:
            self._offsets[id(array)] = self._size
            self._arrays.append(array)
            self._size += array.size
        return self._offsets[id(array)]

    def tensor(self) -> Tensor:
        """(all numbers,)"""
        flat = [np.zeros(0, self._dtype), *(array.reshape(-1) for array in self._arrays)]
        return torch.from_numpy(np.concatenate(flat))
