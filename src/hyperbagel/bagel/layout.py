"""A batch of documents as padded token streams, with attention masks and rope positions.

Text, ViT and start/end-of-image tokens form the understanding stream of a sample, latent tokens its generation stream.
Every token carries its block number, its offset in the block and the block's attention mode; the mask follows
from these three alone, so the order in which tokens are stored is free. `layout_builder` makes layouts of documents.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any, TypeVar

import torch
from torch import Tensor

from hyperbagel.bagel.transfer import moved

IGNORED = -100
"""Label of tokens without loss."""

VIT_TOKEN = -1
"""Stands in the token ids where a ViT token takes the place of a text embedding."""


class Mode(IntEnum):
    """Attention inside a block: text is causal, images are full; a noisy image is full and unseen by other blocks."""

    CAUSAL = 0
    FULL = 1
    NOISE = 2


@dataclass(frozen=True)
class TokenOrder:
    """Where tokens stand, each (B, N) int64: rope position, block number (-1 at padding), offset in the block, Mode."""

    position: Tensor
    block: Tensor
    offset: Tensor
    mode: Tensor

    def cat(self, other: TokenOrder) -> TokenOrder:
        """This stream's tokens followed by another's."""
        return TokenOrder(*(torch.cat([getattr(self, f.name), getattr(other, f.name)], 1) for f in fields(self)))

    def mask(self) -> Tensor:
        """(B, 1, N, N) bool, True where a token may attend. Padding is never attended to, but attends (to everything),
        since a row without keys would be NaN."""
        q_block, k_block = self.block[:, :, None], self.block[:, None, :]
        earlier = (k_block < q_block) & (self.mode[:, None, :] != Mode.NOISE)
        inside = (k_block == q_block) & (
            (self.mode[:, :, None] != Mode.CAUSAL) | (self.offset[:, None, :] <= self.offset[:, :, None])
        )
        return (((earlier | inside) & (k_block >= 0)) | (q_block < 0))[:, None]


@dataclass(frozen=True)
class ViTBatch:
    """All ViT images of a batch. patches: (images, N, patch_dim), position_ids and valid: (images, N),
    slots: (images * N,) place of each token in the flattened understanding stream, one behind its end for padding;
    ragged: whether there is any padding, so that attention needs `valid`."""

    patches: Tensor
    position_ids: Tensor
    valid: Tensor
    slots: Tensor
    ragged: bool


@dataclass(frozen=True)
class OnHost:
    """What a process knows of a layout without waiting for a device: tensors that stay on the CPU.

    block: (B, Nu + Ng) block numbers, -1 at padding, understanding tokens first; others: as of `Layout`.
    """

    block: Tensor
    ids: Tensor
    labels: Tensor
    next_position: Tensor
    text_cut: Tensor
    cut_position: Tensor


@dataclass(frozen=True)
class Layout:
    """A batch of documents as token streams.

    Examples:
        >>> from hyperbagel.bagel.segments import TextSegment
        >>> layout = model.layout([[TextSegment(torch.tensor([5, 6]), loss=True)]])
        >>> layout.ids.shape, int((layout.labels >= 0).sum())  # two ids and eos are learnt
        (torch.Size([1, 4]), 3)
    """

    und: TokenOrder
    """Where the Nu columns of the understanding stream stand."""
    gen: TokenOrder
    """Where the Ng columns of the generation stream stand."""
    ids: Tensor
    """(B, Nu) token ids, VIT_TOKEN where ViT tokens go."""
    labels: Tensor
    """(B, Nu) next-token labels, IGNORED without loss."""
    learnt: Tensor
    """(answers,) places of labels in the flattened understanding stream."""
    vit: ViTBatch | None
    """All ViT images of the batch; None: there are none."""
    latents: Tensor
    """(B, Ng, C) clean latent tokens."""
    grid_ids: Tensor
    """(B, Ng) ids into the latent position table."""
    image: Tensor
    """(B, Ng) number of the image in the batch, -1 at padding."""
    image_loss: Tensor
    """(images,) bool, True for images to be generated."""
    generates: bool
    """Whether any image is to be generated."""
    next_position: Tensor
    """(B,) rope position of the next block."""
    text_cut: Tensor
    """(B,) first block that the state without the last prompt leaves out."""
    cut_position: Tensor
    """(B,) rope position at that block."""
    cut_length: int
    """Columns, of both streams one after the other, up to the last that the state without the last prompt keeps."""
    cut_whole: bool
    """Whether that state keeps these columns in all samples."""
    padded: bool
    """Whether any stream holds padding."""
    host: OnHost
    """Some of it for whoever has to decide by it."""

    @property
    def generated(self) -> Tensor:
        """(B, Ng) bool: latent tokens that carry the flow-matching loss."""
        return self.gen.mode.eq(Mode.NOISE) & self.gen.block.ge(0)

    def to(self, device: torch.device | str) -> Layout:
        """The same layout with every tensor but those of `host` on `device`."""
        return _to(self, torch.device(device))


_Record = TypeVar("_Record")


def _to(record: _Record, device: torch.device) -> _Record:
    on_device: dict[str, Any] = {}
    for f in fields(record):  # type: ignore[arg-type]
        value = getattr(record, f.name)
        if isinstance(value, Tensor):
            on_device[f.name] = moved(value, device)
        elif isinstance(value, TokenOrder | ViTBatch):
            on_device[f.name] = _to(value, device)
    return replace(record, **on_device)  # type: ignore[type-var]
