"""Places the segments of documents in token streams: `build_layout` makes a `Layout` of a batch of documents.

Python goes once over the segments and notes where blocks stand. Tokens are made of these notes for all documents at
once, since batches of hundreds are laid out in every update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.grid import grid_ids, latent_grid
from hyperbagel.bagel.groups import padded
from hyperbagel.bagel.layout import IGNORED, VIT_TOKEN, Layout, Mode, OnHost, TokenOrder, ViTBatch
from hyperbagel.bagel.segments import Document, DroppedSegment, LatentSegment, Segment, TextSegment, ViTSegment
from hyperbagel.bagel.transfer import moved
from hyperbagel.bagel.vision import patches_of

_Numbers: TypeAlias = NDArray[np.int64]
_LAST = 1 << 30
"""Offset after any number of latents."""


class _Block(NamedTuple):
    """Where a block stands. learnt: offset of the first token that has a label, in texts with loss."""

    sample: int
    position: int
    number: int
    mode: int
    tokens: int
    learnt: int = _LAST


class _Tokens:
    """The tokens of one stream, one block after the other: arrays (tokens,), and (blocks,) of what blocks are made of.

    row, column: place in the padded stream, whose width is a multiple of `multiple`; of: number of the block among all;
    offset: in the block.
    """

    def __init__(self, blocks: Sequence[_Block], samples: int, multiple: int) -> None:
        table = np.array(blocks, dtype=np.int64).reshape(-1, len(_Block._fields))
        sample, self._position, self._number, self.mode, self.tokens, self.learnt = table.T
        self.ends = self.tokens.cumsum()
        self.of = np.repeat(np.arange(len(table)), self.tokens)
        self.offset = np.arange(len(self.of)) - (self.ends - self.tokens)[self.of]
        lengths = np.bincount(sample, self.tokens, samples).astype(np.int64)
        self.row = sample[self.of]
        self.column = np.arange(len(self.of)) - (lengths.cumsum() - lengths)[self.row]
        self.shape = samples, _rounded_up(int(lengths.max(initial=0)), multiple)
        self.padded = bool((lengths < self.shape[1]).any())

    @property
    def place(self) -> _Numbers:
        """(tokens,) in the flattened stream."""
        return self.row * self.shape[1] + self.column

    def stream(self, values: _Numbers, padding: int) -> Tensor:
        """Values (tokens,) as a padded stream (B, N)."""
        filled = np.full(self.shape, padding, dtype=np.int64)
        filled[self.row, self.column] = values
        return torch.from_numpy(filled)

    def order(self, offset: _Numbers) -> TokenOrder:
        """offset: (tokens,) as masks want it."""
        mode = self.mode[self.of]
        position = self._position[self.of] + np.where(mode == Mode.CAUSAL, self.offset, 0)
        return TokenOrder(
            position=self.stream(position, 0),
            block=self.stream(self._number[self.of], -1),
            offset=self.stream(offset, 0),
            mode=self.stream(mode, Mode.FULL),
        )


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class LayoutBuilder:
    """Places the segments of documents, one sample after the other, and pads them to a `Layout`.

    multiple: of which the length of the understanding stream is.
    """

    def __init__(self, config: BagelConfig, multiple: int = 1) -> None:
        self.config, self.multiple = config, multiple
        self.und: list[_Block] = []
        self.gen: list[_Block] = []
        self.texts: list[Tensor] = []
        self.vit: list[Tensor] = []
        self.latents: list[Tensor] = []
        self.sizes: list[tuple[int, int]] = []
        self.ends: list[tuple[int, int, int]] = []

    def add(self, document: Document, start: int = 0) -> None:
        """Append a sample that starts at rope position `start`. Raises ValueError for images that do not fit."""
        position, cut, cut_position = start, 0, start
        for number, segment in enumerate(document):
            before = position
            position = self._place(segment, number, position)
            is_text = isinstance(segment, TextSegment)
            cut, cut_position = (number, before) if is_text else (number + 1, position)
        self.ends.append((position, cut, cut_position))

    def _place(self, segment: Segment, number: int, position: int) -> int:
        """Add one block; returns the rope position after it."""
        sample = len(self.ends)
        if isinstance(segment, TextSegment):
            tokens = len(segment.ids) + 2
            learnt = segment.prefix if segment.loss else _LAST
            self.und.append(_Block(sample, position, number, Mode.CAUSAL, tokens, learnt))
            self.texts.append(segment.ids)
            return position + tokens
        if isinstance(segment, ViTSegment):
            tokens = self._vit_tokens(segment.pixels)
            self.vit.append(segment.pixels)
            self.und.append(_Block(sample, position, number, Mode.FULL, tokens + 2))
            return position + 1
        if isinstance(segment, LatentSegment):
            mode = Mode.NOISE if segment.loss else Mode.FULL
            height, width = size = self._latent_size(segment.latent)
            self.latents.append(segment.latent)
            self.sizes.append(size)
            self.und.append(_Block(sample, position, number, mode, 2))
            self.gen.append(_Block(sample, position, number, mode, height * width))
            return position if segment.loss else position + 1
        if isinstance(segment, DroppedSegment):
            return position + 1
        raise TypeError(f"segment {number} is a {type(segment).__name__}: encode images to latents first")

    def _vit_tokens(self, pixels: Tensor) -> int:
        vit = self.config.vit
        side, patch = vit.patches_per_side, vit.patch_size
        channels, height, width = pixels.shape
        if channels != vit.num_channels:
            raise ValueError(f"ViT image is {tuple(pixels.shape)}: it must be ({vit.num_channels}, height, width)")
        if height % patch or width % patch or max(height, width) > side * patch or not height * width:
            raise ValueError(
                f"ViT image of {width}x{height} pixels: sides must be multiples of {patch} and at most {side * patch}"
            )
        return (height // patch) * (width // patch)

    def _latent_size(self, latent: Tensor) -> tuple[int, int]:
        if latent.shape[0] != self.config.autoencoder.z_channels:
            raise ValueError(
                f"latent is {tuple(latent.shape)}: it must have {self.config.autoencoder.z_channels} channels"
            )
        return latent_grid(tuple(latent.shape[-2:]), self.config)

    def build(self) -> Layout:
        """Pad everything that was added."""
        samples = len(self.ends)
        und, gen = _Tokens(self.und, samples, self.multiple), _Tokens(self.gen, samples, 1)
        ids = self._ids(und)
        taught = np.flatnonzero((und.offset >= und.learnt[und.of]) & (und.offset < und.tokens[und.of] - 1))
        labels = np.full_like(ids, IGNORED)
        labels[taught] = ids[taught + 1]
        und_offset = und.offset.copy()
        latents = (und.mode != Mode.CAUSAL) & (und.tokens == 2)  # nothing but the markers around them
        und_offset[und.ends[latents] - 1] = _LAST
        ends = torch.tensor(self.ends).reshape(-1, 3)
        und_order, gen_order = und.order(und_offset), gen.order(gen.offset + 1)
        padded = und.padded or gen.padded or self.multiple > 1
        und_ids, und_labels = und.stream(ids, 0), und.stream(labels, IGNORED)
        host = OnHost(torch.cat([und_order.block, gen_order.block], 1), und_ids, und_labels, *ends.unbind(1))
        cut_length, cut_whole = self._cut(host.block, ends[:, 1:2])
        return Layout(
            und=und_order,
            gen=gen_order,
            ids=und_ids,
            labels=und_labels,
            learnt=torch.from_numpy(und.place[taught]),
            vit=self._vit_batch(und, ids),
            latents=self._latents(gen),
            grid_ids=gen.stream(_concatenated(self._grids()), 0),
            image=gen.stream(gen.of, -1),
            image_loss=torch.from_numpy(gen.mode == Mode.NOISE),
            generates=bool((gen.mode == Mode.NOISE).any()),
            next_position=ends[:, 0],
            text_cut=ends[:, 1],
            cut_position=ends[:, 2],
            cut_length=cut_length,
            cut_whole=cut_whole,
            padded=padded,
            host=host,
        )

    def _ids(self, und: _Tokens) -> _Numbers:
        """(tokens,) of the understanding stream."""
        tokens, text = self.config.tokens, und.mode == Mode.CAUSAL
        ids = np.full(len(und.of), VIT_TOKEN, dtype=np.int64)
        body = text[und.of] & (und.offset > 0) & (und.offset < und.tokens[und.of] - 1)
        ids[body] = self._bodies()
        ids[und.ends - und.tokens] = np.where(text, tokens.bos, tokens.start_of_image)
        ids[und.ends - 1] = np.where(text, tokens.eos, tokens.end_of_image)
        return ids

    def _bodies(self) -> _Numbers:
        """The ids of all texts. Raises ValueError for those that the model does not know."""
        bodies: list[_Numbers] = [text.cpu().numpy() for text in self.texts]
        together, vocabulary = _concatenated(bodies), self.config.llm.vocab_size
        if len(together) and not 0 <= together.min() <= together.max() < vocabulary:
            low, high = next((b.min(), b.max()) for b in bodies if len(b) and not 0 <= b.min() <= b.max() < vocabulary)
            raise ValueError(
                f"token ids {low} to {high} do not fit a vocabulary of {vocabulary}: "
                "was the text tokenized for another model?"
            )
        return together

    def _grids(self) -> list[_Numbers]:
        """Ids of each image's tokens in the position table of latents."""
        of_size = {size: grid_ids(size, self.config.max_latent_size).numpy() for size in dict.fromkeys(self.sizes)}
        return [of_size[size] for size in self.sizes]

    def _latents(self, gen: _Tokens) -> Tensor:
        """(B, Ng, C) clean latent tokens."""
        if not self.latents:
            return torch.zeros(*gen.shape, self.config.latent_token_dim)
        patches = patches_of(self.latents, self.config.latent_patch_size)
        if not gen.padded and len(patches) * patches.shape[1] == len(gen.of):
            return patches.reshape(*gen.shape, -1)
        tokens = patches.flatten(0, 1)
        if len(tokens) > len(gen.of):  # of several sizes, hence padded
            kept = torch.from_numpy(gen.of * patches.shape[1] + gen.offset)
            tokens = tokens[moved(kept, tokens.device)]
        empty = tokens.new_zeros(gen.shape[0] * gen.shape[1], tokens.shape[1])
        place = moved(torch.from_numpy(gen.place), tokens.device)
        return empty.index_copy(0, place, tokens).view(*gen.shape, -1)

    def _vit_batch(self, und: _Tokens, ids: _Numbers) -> ViTBatch | None:
        if not self.vit:
            return None
        side, patch = self.config.vit.patches_per_side, self.config.vit.patch_size
        sizes = [(pixels.shape[1] // patch, pixels.shape[2] // patch) for pixels in self.vit]
        of_size = {size: grid_ids(size, side) for size in dict.fromkeys(sizes)}
        position_ids = padded([of_size[size] for size in sizes])
        valid = torch.arange(position_ids.shape[1]) < torch.tensor([h * w for h, w in sizes])[:, None]
        slots = torch.full(position_ids.shape, und.shape[0] * und.shape[1])
        slots[valid] = torch.from_numpy(und.place[ids == VIT_TOKEN])
        return ViTBatch(
            patches=patches_of(self.vit, patch),
            position_ids=position_ids,
            valid=valid,
            slots=slots.flatten(),
            ragged=not bool(valid.all()),
        )

    def _cut(self, block: Tensor, cut: Tensor) -> tuple[int, bool]:
        """Columns up to the last one of which a sample keeps anything before its cut (B, 1), and whether all keep all
        of them. block: (B, Nu + Ng)."""
        kept = (block >= 0) & (block < cut)
        used = kept.any(0).nonzero()
        length = min(_rounded_up(int(used[-1]) + 1 if len(used) else 0, self.multiple), block.shape[1])
        return length, self.multiple == 1 and bool(kept[:, :length].all())


def _concatenated(arrays: Sequence[NDArray[Any]]) -> _Numbers:
    return np.concatenate([np.zeros(0, dtype=np.int64), *arrays])


def build_layout(
    documents: Sequence[Document], config: BagelConfig, start: Tensor | None = None, multiple: int = 1
) -> Layout:
    """Lay out a batch. start: (B,) rope positions at which the samples begin (default 0); multiple: of which lengths
    are, by padding.

    All tensors are on the CPU but the pixels and latents, which stay where they are; `Layout.to` moves the rest.
    """
    builder = LayoutBuilder(config, multiple)
    starts = [0] * len(documents) if start is None else start.tolist()
    for document, position in zip(documents, starts, strict=True):
        builder.add(document, position)
    return builder.build()
