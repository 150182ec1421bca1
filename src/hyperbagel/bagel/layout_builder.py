"""Places the segments of documents in token streams: `build_layout` makes a `Layout` of a batch of documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.grid import grid_ids, latent_grid
from hyperbagel.bagel.layout import IGNORED, VIT_TOKEN, Layout, Mode, TokenOrder, ViTBatch
from hyperbagel.bagel.segments import Document, DroppedSegment, LatentSegment, Segment, TextSegment, ViTSegment
from hyperbagel.bagel.vision import patchify


@dataclass
class _Stream:
    """Token columns of one sample, in pieces."""

    position: list[Tensor] = field(default_factory=list)
    block: list[Tensor] = field(default_factory=list)
    offset: list[Tensor] = field(default_factory=list)
    mode: list[Tensor] = field(default_factory=list)
    values: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, offset: Tensor, place: tuple[int, int, Mode], values: tuple[Tensor, Tensor]) -> None:
        position, block, mode = place
        self.position.append(torch.full_like(offset, position) + (offset if mode is Mode.CAUSAL else 0))
        self.block.append(torch.full_like(offset, block))
        self.offset.append(offset)
        self.mode.append(torch.full_like(offset, mode))
        self.values.append(values)

    def column(self, index: int) -> Tensor:
        return _cat([v[index] for v in self.values])


def _cat(pieces: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(pieces)) if pieces else torch.zeros(0, dtype=torch.long)


def _pad(rows: Sequence[Tensor], value: float) -> Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value)


def _order(streams: Sequence[_Stream]) -> TokenOrder:
    return TokenOrder(
        position=_pad([_cat(s.position) for s in streams], 0),
        block=_pad([_cat(s.block) for s in streams], -1),
        offset=_pad([_cat(s.offset) for s in streams], 0),
        mode=_pad([_cat(s.mode) for s in streams], Mode.FULL),
    )


class LayoutBuilder:
    """Places the segments of documents, one sample after the other, and pads them to a `Layout`."""

    def __init__(self, config: BagelConfig) -> None:
        self.config = config
        self.und: list[_Stream] = []
        self.gen: list[_Stream] = []
        self.vit: list[tuple[Tensor, Tensor]] = []
        self.image_tokens: list[Tensor] = []
        self.image_loss: list[bool] = []
        self.ends: list[tuple[int, int, int]] = []

    def add(self, document: Document, start: int = 0) -> None:
        """Append a sample that starts at rope position `start`. Raises ValueError for images that do not fit."""
        self.und.append(_Stream())
        self.gen.append(_Stream())
        position, cut, cut_position = start, 0, start
        for block, segment in enumerate(document):
            before = position
            position = self._place(segment, block, position)
            is_text = isinstance(segment, TextSegment)
            cut, cut_position = (block, before) if is_text else (block + 1, position)
        self.ends.append((position, cut, cut_position))

    def _place(self, segment: Segment, block: int, position: int) -> int:
        """Add one block; returns the rope position after it."""
        if isinstance(segment, TextSegment):
            return self._text(segment, block, position)
        if isinstance(segment, ViTSegment):
            patches, ids = self._vit_tokens(segment.pixels)
            self.vit.append((patches, ids))
            self._image(block, position, Mode.FULL, vit_tokens=len(ids))
            return position + 1
        if isinstance(segment, LatentSegment):
            mode = Mode.NOISE if segment.loss else Mode.FULL
            self._latent(segment.latent, (position, block, mode))
            self._image(block, position, mode)
            return position if segment.loss else position + 1
        if isinstance(segment, DroppedSegment):
            return position + 1
        raise TypeError(f"segment {block} is a {type(segment).__name__}: encode images to latents first")

    def _text(self, segment: TextSegment, block: int, position: int) -> int:
        tokens, vocabulary = self.config.tokens, self.config.llm.vocab_size
        body = segment.ids.cpu()
        if len(body) and not 0 <= int(body.min()) <= int(body.max()) < vocabulary:
            raise ValueError(
                f"token ids {int(body.min())} to {int(body.max())} do not fit a vocabulary of {vocabulary}: "
                "was the text tokenized for another model?"
            )
        ids = torch.cat([torch.tensor([tokens.bos]), body, torch.tensor([tokens.eos])])
        labels = torch.full_like(ids, IGNORED)
        if segment.loss:
            labels[segment.prefix : -1] = ids[segment.prefix + 1 :]
        self.und[-1].add(torch.arange(len(ids)), (position, block, Mode.CAUSAL), (ids, labels))
        return position + len(ids)

    def _image(self, block: int, position: int, mode: Mode, vit_tokens: int = 0) -> None:
        """start-of-image, ViT tokens (none for latents, which have their own stream), end-of-image."""
        ids = torch.full((vit_tokens + 2,), VIT_TOKEN)
        ids[0], ids[-1] = self.config.tokens.start_of_image, self.config.tokens.end_of_image
        offset = torch.arange(len(ids))
        if not vit_tokens:
            offset[-1] = 1 << 30  # after any number of latents
        self.und[-1].add(offset, (position, block, mode), (ids, torch.full_like(ids, IGNORED)))

    def _vit_tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vit = self.config.vit
        side, patch = vit.patches_per_side, vit.patch_size
        channels, height, width = pixels.shape
        if channels != vit.num_channels:
            raise ValueError(f"ViT image is {tuple(pixels.shape)}: it must be ({vit.num_channels}, height, width)")
        if height % patch or width % patch or max(height, width) > side * patch or not height * width:
            raise ValueError(
                f"ViT image of {width}x{height} pixels: sides must be multiples of {patch} and at most {side * patch}"
            )
        return patchify(pixels, patch), grid_ids((height // patch, width // patch), side)

    def _latent(self, latent: Tensor, place: tuple[int, int, Mode]) -> None:
        if latent.shape[0] != self.config.autoencoder.z_channels:
            raise ValueError(
                f"latent is {tuple(latent.shape)}: it must have {self.config.autoencoder.z_channels} channels"
            )
        size = latent_grid(tuple(latent.shape[-2:]), self.config)
        ids = grid_ids(size, self.config.max_latent_size)
        number = torch.full_like(ids, len(self.image_tokens))
        self.image_tokens.append(patchify(latent, self.config.latent_patch_size))
        self.image_loss.append(place[2] is Mode.NOISE)
        self.gen[-1].add(torch.arange(1, len(ids) + 1), place, (ids, number))

    def build(self) -> Layout:
        """Pad everything that was added."""
        ids = _pad([s.column(0) for s in self.und], 0)
        image = _pad([s.column(1) for s in self.gen], -1)
        und, gen = _order(self.und), _order(self.gen)
        ends = torch.tensor(self.ends).reshape(-1, 3)
        return Layout(
            und=und,
            gen=gen,
            ids=ids,
            labels=_pad([s.column(1) for s in self.und], IGNORED),
            vit=self._vit_batch(ids),
            latents=self._latents(image),
            grid_ids=_pad([s.column(0) for s in self.gen], 0),
            image=image,
            image_loss=torch.tensor(self.image_loss, dtype=torch.bool),
            next_position=ends[:, 0],
            text_cut=ends[:, 1],
            cut_position=ends[:, 2],
            padded=bool((und.block < 0).any() or (gen.block < 0).any()),
        )

    def _latents(self, image: Tensor) -> Tensor:
        channels = self.config.latent_token_dim
        if not self.image_tokens:
            return torch.zeros(*image.shape, channels)
        tokens = torch.cat(self.image_tokens)
        latents = tokens.new_zeros(*image.shape, channels)
        # Samples and, inside a sample, images were added in the order of the flattened stream.
        latents[(image >= 0).to(tokens.device)] = tokens
        return latents

    def _vit_batch(self, ids: Tensor) -> ViTBatch | None:
        if not self.vit:
            return None
        patches, position_ids = zip(*self.vit, strict=True)
        lengths = torch.tensor([len(p) for p in patches])
        valid = torch.arange(int(lengths.max())) < lengths[:, None]
        slots = ids.eq(VIT_TOKEN).flatten().nonzero().flatten()
        return ViTBatch(_pad(patches, 0), _pad(position_ids, 0), valid, slots)


def build_layout(documents: Sequence[Document], config: BagelConfig, start: Tensor | None = None) -> Layout:
    """Lay out a batch. start: (B,) rope positions at which the samples begin (default 0).

    All tensors are on the CPU but the pixels and latents, which stay where they are; `Layout.to` moves the rest.
    """
    builder = LayoutBuilder(config)
    starts = [0] * len(documents) if start is None else start.tolist()
    for document, position in zip(documents, starts, strict=True):
        builder.add(document, position)
    return builder.build()
