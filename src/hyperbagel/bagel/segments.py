"""Segments: the pieces of an interleaved document, as the model reads them.

A *document* is a sequence of segments. Data readers build documents, `layout.Layout` turns a batch of them into
padded token streams, and `Bagel.prefill` turns them into a key-value cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hyperbagel.bagel.transfer import moved


def _check_image(segment: object, image: object, channels: str, hint: str) -> None:
    if not (isinstance(image, Tensor) and image.ndim == 3 and image.is_floating_point()):
        got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
        raise TypeError(f"{type(segment).__name__} needs a float tensor ({channels}, height, width), got {got}; {hint}")


_PIXELS = "an `images.ImageTransform` makes one from a picture"


@dataclass(frozen=True, slots=True)
class TextSegment:
    """A text block: bos, the ids, eos. Causal; every token advances the rope position by one.

    ids: (n,) int64 token ids without bos and eos.
    loss: whether the ids (and the eos after them) are predicted, i.e. whether this is an answer.
    prefix: how many ids at the beginning of an answer are given and not predicted, such as the name of the speaker.
    """

    ids: Tensor
    loss: bool = False
    prefix: int = 0

    def __post_init__(self) -> None:
        """Refuse anything but a row of token ids."""
        if not (isinstance(self.ids, Tensor) and self.ids.ndim == 1 and self.ids.dtype == torch.long):
            raise TypeError(f"TextSegment needs int64 token ids (n,), got {self.ids!r:.80}; tokenize the text first")
        if not 0 <= self.prefix <= len(self.ids):
            raise ValueError(f"TextSegment of {len(self.ids)} ids cannot have a prefix of {self.prefix}")


@dataclass(frozen=True, slots=True)
class ViTSegment:
    """An image seen by the understanding tower. pixels: (3, H, W) in [-1, 1], H and W multiples of the ViT patch."""

    pixels: Tensor

    def __post_init__(self) -> None:
        """Refuse anything but pixels."""
        _check_image(self, self.pixels, "3", _PIXELS)


@dataclass(frozen=True, slots=True)
class ImageSegment:
    """An image for the autoencoder, still in pixels: (3, H, W) in [-1, 1]; `Bagel.encode` makes it a LatentSegment.

    loss: True for an image to be generated (noised, regressed), False for a clean condition.
    latent: (z, h, w), what `Bagel.encode` would make of the pixels, where it is known already.
    """

    pixels: Tensor
    loss: bool = False
    latent: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse anything but pixels."""
        _check_image(self, self.pixels, "3", _PIXELS)


@dataclass(frozen=True, slots=True)
class LatentSegment:
    """An image as scaled autoencoder latent. latent: (z, h, w), h and w multiples of the latent patch size.

    loss: True for an image to be generated (its tokens are noised, nothing later sees it), False for a condition.
    """

    latent: Tensor
    loss: bool = False

    def __post_init__(self) -> None:
        """Refuse anything but a latent."""
        _check_image(self, self.latent, "channels", "`Bagel.encode` makes one from pixels")


@dataclass(frozen=True, slots=True)
class DroppedSegment:
    """An image block that condition dropout removed: no tokens, but the rope position still advances by one."""


Segment: TypeAlias = TextSegment | ViTSegment | ImageSegment | LatentSegment | DroppedSegment
Document: TypeAlias = Sequence[Segment]


def holds_image(document: Document) -> bool:
    """Whether an image is in a document, for the autoencoder or for the understanding tower."""
    return any(isinstance(segment, ImageSegment | LatentSegment | ViTSegment) for segment in document)


@dataclass(frozen=True, slots=True)
class DocumentBatch:
    """What data modules hand to stages: one entry per document in each field.

    documents: the segments, condition dropout already applied; keys: unique sample names, for error reports;
    metas: the samples' free-form `meta`; source: name of the data source (one source per batch).

    Examples:
        >>> batch = DocumentBatch((document,), keys=("a",), metas=({},), source="mine")
        >>> len(batch), len(batch.repeat(3))
        (1, 3)
    """

    documents: tuple[Document, ...]
    keys: tuple[str, ...]
    metas: tuple[dict[str, Any], ...]
    source: str = ""

    def __len__(self) -> int:
        return len(self.documents)

    def repeat(self, times: int) -> DocumentBatch:
        """All documents, `times` times over."""
        return replace(self, documents=self.documents * times, keys=self.keys * times, metas=self.metas * times)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> DocumentBatch:
        """The same batch with every picture on `device` (Lightning calls this).

        Texts stay where they are: layouts are made of them on the host. Pictures that share a storage, as a loaded
        batch's do, move as one: hundreds of small copies would take longer than an update.
        """
        move = _Move(torch.device(device))
        return replace(self, documents=tuple([move(segment) for segment in document] for document in self.documents))


class _Move:
    """Moves pictures to a device, each storage once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._moved: dict[tuple[int, torch.dtype], Tensor] = {}

    def __call__(self, segment: Segment) -> Segment:
        if isinstance(segment, TextSegment | DroppedSegment):
            return segment
        values = {f.name: getattr(segment, f.name) for f in fields(segment)}
        elsewhere: dict[str, Any] = {
            name: self._one(value)
            for name, value in values.items()
            if isinstance(value, Tensor) and value.device != self._device
        }
        return replace(segment, **elsewhere) if elsewhere else segment

    def _one(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        key = storage.data_ptr(), value.dtype
        if key not in self._moved:
            whole = torch.empty(0, dtype=value.dtype, device=value.device).set_(storage)
            self._moved[key] = moved(whole, self._device)
        return self._moved[key].as_strided(value.shape, value.stride(), value.storage_offset())
