"""Prefilled contexts: key-value caches of documents, for denoising and decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.layout import Layout
from hyperbagel.bagel.mot import MoTOutput, Past
from hyperbagel.bagel.transfer import moved


@dataclass(frozen=True)
class Known:
    """What a process knows of a context without waiting for a device: valid (B, T) bool and next_position (B,), both on
    the CPU."""

    valid: Tensor
    next_position: Tensor


@dataclass(frozen=True)
class Context:
    """A key-value cache of a batch of documents; never written to.

    past: keys and values, each (layers, B, kv_heads, T, head_dim); valid: (B, T) bool, or None when every entry is a
    real token that may be attended to; next_position: (B,) rope position of the next block; known: the same on the CPU,
    None where a device has to be asked for it.

    Examples:
        >>> context = model.prefill([document, document])
        >>> context.batch_size, context.length
        (2, 5)
    """

    past: Past
    valid: Tensor | None
    next_position: Tensor
    known: Known | None = None

    @staticmethod
    def of(layout: Layout, output: MoTOutput, past: Context | None = None) -> Context:
        """The cache that a run over a layout leaves, after that of `past`."""
        new = Past(torch.stack(output.keys), torch.stack(output.values))
        valid = torch.cat([layout.und.block, layout.gen.block], 1) >= 0 if layout.padded else None
        known = Known(layout.host.block >= 0, layout.host.next_position)
        if past is not None:
            known = replace(known, valid=torch.cat([past.seen, known.valid], 1))
            both = (past.past.keys, new.keys), (past.past.values, new.values)
            if valid is not None or past.valid is not None:
                real = torch.ones_like(layout.next_position, dtype=torch.bool)[:, None] if valid is None else valid
                valid = torch.cat([past.valid_mask(), real.expand(-1, new.keys.shape[3])], 1)
            new = Past(*(torch.cat(p, dim=3) for p in both))
        return Context(new, valid, layout.next_position, known)

    @property
    def batch_size(self) -> int:
        """Number of documents."""
        return self.next_position.shape[0]

    @property
    def length(self) -> int:
        """T, the stored tokens a document, padding included."""
        return self.past.keys.shape[3]

    @property
    def seen(self) -> Tensor:
        """(B, T) bool on the CPU, which entries may be attended to."""
        return self.valid_mask().cpu() if self.known is None else self.known.valid

    @property
    def positions(self) -> Tensor:
        """(B,) rope positions of the next block, on the CPU."""
        return self.next_position.cpu() if self.known is None else self.known.next_position

    def valid_mask(self) -> Tensor:
        """(B, T) bool."""
        if self.valid is not None:
            return self.valid
        return torch.ones(self.batch_size, self.length, dtype=torch.bool, device=self.next_position.device)

    def mask_with(self, grid: LatentGrid) -> Tensor | None:
        """(B, 1, 1, T + 2 + n) bool, what the latent tokens of images see after this context: it, the two markers of
        the image, and each other; None for everything."""
        if self.valid is None and grid.valid is None:
            return None
        latents = torch.ones_like(grid.position_ids, dtype=torch.bool) if grid.valid is None else grid.valid
        markers = latents.new_ones(len(latents), 2)
        return torch.cat([self.valid_mask(), markers, latents], dim=1)[:, None, None]

    def restrict(self, valid: Tensor, next_position: Tensor, known: Known | None = None) -> Context:
        """The same cache of which only `valid` (B, T) entries may be seen: an earlier state of the same documents."""
        return Context(self.past, valid & self.valid_mask(), next_position, known)

    def rows(self, index: Tensor) -> Context:
        """Select or repeat documents. index: (R,) int64."""
        past = Past(self.past.keys[:, index], self.past.values[:, index])
        return Context(past, None if self.valid is None else self.valid[index], self.next_position[index])

    def beginning(self, length: int, *, whole: bool) -> Context:
        """The first entries. whole: whether all documents may see all of them."""
        past = Past(self.past.keys[..., :length, :], self.past.values[..., :length, :])
        known = None if self.known is None else replace(self.known, valid=self.known.valid[:, :length])
        valid = None if whole or self.valid is None else self.valid[:, :length]
        return Context(past, valid, self.next_position, known)

    def dense(self) -> Context:
        """Drop all entries that no document may see, wherever they are."""
        if self.valid is None:
            return self
        columns = self.seen.any(0).nonzero()[:, 0]
        known = Known(self.seen[:, columns], self.positions)
        kept = moved(columns, self.next_position.device)
        past = Past(self.past.keys[..., kept, :], self.past.values[..., kept, :])
        return Context(past, None if bool(known.valid.all()) else self.valid[:, kept], self.next_position, known)

    @staticmethod
    def stack(contexts: Sequence[Context]) -> Context:
        """One context over all documents of all contexts, padded to the longest."""
        longest = max(c.length for c in contexts)
        if all(c.valid is None and c.length == longest for c in contexts):
            valid = None
        else:
            valid = torch.cat([F.pad(c.valid_mask(), (0, longest - c.length)) for c in contexts])
        keys, values = (
            torch.cat([F.pad(p, (0, 0, 0, longest - p.shape[3])) for p in pasts], dim=1)
            for pasts in zip(*(c.past for c in contexts), strict=True)
        )
        return Context(Past(keys, values), valid, torch.cat([c.next_position for c in contexts]))


class DecodeCache:
    """A context with room for tokens to be decoded; written in place, so without gradients.

    keys, values: (layers, B, kv_heads, capacity, head_dim); length: entries in use; valid: (B, capacity) bool, or None
    when every entry in use is a real token; next_position: (B,) rope position of the next token.
    """

    def __init__(self, context: Context, capacity: int) -> None:
        """Copy `context` and leave room for `capacity` more tokens."""
        self.length = context.length
        self.keys, self.values = (F.pad(p, (0, 0, 0, capacity)).contiguous() for p in context.past)
        self.valid = None if context.valid is None else F.pad(context.valid, (0, capacity), value=True)
        self.next_position = context.next_position.clone()

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values after the entries in use; `advance` makes them permanent."""
        end = self.length + k.shape[2]
        if end > self.keys.shape[3]:
            raise ValueError(f"the decoding cache has room for {self.keys.shape[3]} tokens, {end} are needed")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def mask(self, new: int) -> Tensor | None:
        """(B or 1, 1, new, length + new) bool for causal new tokens; None where everything may be seen."""
        if self.valid is None and new == 1:
            return None
        device = self.keys.device
        mask = torch.ones(new, self.length + new, dtype=torch.bool, device=device).tril(self.length)[None, None]
        return mask if self.valid is None else mask & self.valid[:, None, None, : self.length + new]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more entries as used; negative rolls back."""
        self.length += tokens
        self.next_position += tokens


@dataclass(frozen=True)
class GuidedContext:
    """A context with its guidance variants.

    has_image: (B,) bool, whether the document holds an image; no_text, no_image: without the last prompt, and without
    images (None: not prefilled).
    """

    full: Context
    has_image: Tensor
    no_text: Context | None = None
    no_image: Context | None = None

    def rows(self, index: Tensor) -> GuidedContext:
        """Select or repeat documents in every variant. index: (R,) int64."""
        no_text, no_image = (None if c is None else c.rows(index) for c in (self.no_text, self.no_image))
        return GuidedContext(self.full.rows(index), self.has_image[index], no_text, no_image)
