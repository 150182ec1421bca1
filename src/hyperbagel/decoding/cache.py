"""Key-value buffers in which every row of a batch has its own length, for tokens that may be taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from hyperbagel.bagel.context import Context


class Entries(Protocol):
    """Where layers put their keys and values."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, new, kv_heads, head_dim); all of the layer, (B, kv_heads, T, head_dim)."""
        ...


class RowCache:
    """Preallocated keys and values, (layers, B, kv_heads, capacity, head_dim).

    New tokens are written after each row's entries and count only when committed: what is not committed is
    overwritten, which is the whole of rolling back. Rows of equal length (always so at batch size 1) take a path of
    plain slices.
    """

    def __init__(self, keys: Tensor, values: Tensor, lengths: Sequence[int]) -> None:
        self.keys, self.values = keys, values
        self.lengths = list(lengths)
        self._rows = torch.arange(keys.shape[1], device=keys.device)[:, None]
        self._slots: Tensor | None = None
        self._new: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] = ((), ())
        self._seen: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] = ((), ())

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], like: Tensor) -> RowCache:
        """An empty cache. shape: (layers, B, kv_heads, capacity, head_dim); like: gives device and dtype."""
        return cls(_buffer(shape, like), _buffer(shape, like), [0] * shape[1])

    @classmethod
    def of(cls, context: Context, capacity: int) -> RowCache:
        """A copy of a context with room for `capacity` more tokens; padding inside its rows is squeezed out, which
        attention does not notice."""
        keys, values = context.past
        lengths = [context.length] * context.batch_size
        if context.valid is not None:
            order = torch.argsort(~context.valid, dim=1, stable=True)
            index = order[None, :, None, :, None].expand_as(keys)
            keys, values = keys.gather(3, index), values.gather(3, index)
            lengths = context.seen.sum(1).tolist()
        used = max(lengths)
        keys, values = (_with_room([buffer[:, :, :, :used]], used + capacity) for buffer in (keys, values))
        return cls(keys, values, lengths)

    def copy(self, room: int) -> RowCache:
        """The committed tokens in a new cache with room for that many more."""
        used = max(self.lengths)
        keys, values = (_with_room([buffer[:, :, :, :used]], used + room) for buffer in (self.keys, self.values))
        return RowCache(keys, values, self.lengths)

    def select(self, rows: Sequence[int]) -> RowCache:
        """The committed tokens of some rows in a new cache, and as much room."""
        lengths = [self.lengths[row] for row in rows]
        index, used, capacity = torch.tensor(rows, device=self.keys.device), max(lengths), self.keys.shape[3]
        kept = (buffer[:, :, :, :used].index_select(1, index) for buffer in (self.keys, self.values))
        keys, values = (_with_room([buffer], capacity) for buffer in kept)
        return RowCache(keys, values, lengths)

    def keep(self, rows: Sequence[int]) -> None:
        """Leave out all other rows, in place. rows: those of the result; one that moves comes from behind them all."""
        for row, source in enumerate(rows):
            if row != source:
                used = self.lengths[source]
                for buffer in (self.keys, self.values):
                    buffer[:, row, :, :used] = buffer[:, source, :, :used]
        self.keys, self.values = self.keys[:, : len(rows)], self.values[:, : len(rows)]
        self.lengths = [self.lengths[row] for row in rows]
        self._rows = self._rows[: len(rows)]

    def beside(self, other: RowCache) -> RowCache:
        """One cache of the rows of both, with the room of the larger."""
        capacity = max(self.keys.shape[3], other.keys.shape[3])
        keys, values = (
            _with_room([buffer[:, :, :, : max(cache.lengths)] for cache, buffer in pair], capacity)
            for pair in (
                ((self, self.keys), (other, other.keys)),
                ((self, self.values), (other, other.values)),
            )
        )
        return RowCache(keys, values, [*self.lengths, *other.lengths])

    def upto(self, lengths: Sequence[int]) -> RowCache:
        """An earlier state, without room, which shares its memory: tokens are only ever written behind it."""
        used = max(lengths)
        return RowCache(self.keys[:, :, :, :used], self.values[:, :, :, :used], lengths)

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @property
    def free(self) -> int:
        """How many more tokens fit behind the longest row."""
        return self.keys.shape[3] - max(self.lengths)

    def place(self, new: int, ahead: int = 0, inner: Tensor | None = None, *, masked: bool = True) -> Tensor | None:
        """Say where the next pass writes, and get its attention mask.

        new: tokens a row; ahead: uncommitted tokens before them that stay; inner: (1 or B, new, ahead + new) bool,
        which of these and of each other the new tokens see (default causal); masked=False: the mask is known already.
        Returns an additive mask (1 or B, 1, new, T), or None when everything is seen; committed tokens always are.
        Raises ValueError when the capacity is exceeded.
        """
        end = max(self.lengths) + ahead + new
        if end > self.keys.shape[3]:
            raise ValueError(f"the decoding cache has room for {self.keys.shape[3]} tokens, {end} are needed")
        first = self.lengths[0]
        uniform = self.lengths.count(first) == len(self.lengths)
        self._seen = self.keys.narrow(3, 0, end).unbind(0), self.values.narrow(3, 0, end).unbind(0)
        if uniform:
            self._slots = None
            begin = first + ahead
            self._new = self.keys.narrow(3, begin, new).unbind(0), self.values.narrow(3, begin, new).unbind(0)
        else:
            lengths = torch.tensor(self.lengths, device=self.keys.device)[:, None]
            self._slots = lengths + torch.arange(ahead, ahead + new, device=self.keys.device)
        if not masked or (uniform and new == 1 and inner is None):
            return None
        if inner is None:
            inner = self.keys.new_ones(1, new, ahead + new, dtype=torch.bool).tril(ahead)
        return self._additive(self._mask(inner, end))

    def _mask(self, inner: Tensor, end: int) -> Tensor:
        """(1 or B, new, end) bool: committed tokens and, after them, what `inner` says."""
        if self._slots is None:
            return torch.cat([inner.new_ones(*inner.shape[:2], self.lengths[0]), inner], dim=-1)
        lengths = torch.tensor(self.lengths, device=inner.device)[:, None, None]
        slot = torch.arange(end, device=inner.device) - lengths  # (B, 1, end), negative: committed
        index = slot.clamp(0, inner.shape[-1] - 1).expand(-1, inner.shape[1], -1)
        inside = inner.expand(len(lengths), -1, -1).gather(-1, index) & (slot < inner.shape[-1])
        return inside | (slot < 0)

    def _additive(self, mask: Tensor) -> Tensor:
        zeros = torch.zeros(mask.shape, dtype=self.keys.dtype, device=mask.device)
        return zeros.masked_fill_(~mask, float("-inf"))[:, None]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, new, kv_heads, head_dim) at the place set; all of the layer, (B, kv_heads, T, head_dim)."""
        if self._slots is None:
            self._new[0][layer].copy_(k.transpose(1, 2))
            self._new[1][layer].copy_(v.transpose(1, 2))
        else:
            self.keys[layer][self._rows, :, self._slots] = k
            self.values[layer][self._rows, :, self._slots] = v
        return self._seen[0][layer], self._seen[1][layer]

    def commit(self, counts: Sequence[int]) -> None:
        """Keep the first counts[b] of the tokens written after row b's entries."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def gather(self, row: int, offsets: Sequence[int]) -> None:
        """Move the written tokens at `offsets` of a row to the front, to be committed: a path through a tree."""
        if list(offsets) == list(range(len(offsets))):
            return
        begin = self.lengths[row]
        source = torch.tensor([begin + offset for offset in offsets], device=self.keys.device)
        for buffer in (self.keys, self.values):
            buffer[:, row, :, begin : begin + len(offsets)] = buffer[:, row].index_select(2, source)


def _with_room(parts: Sequence[Tensor], capacity: int) -> Tensor:
    """Buffers (layers, B, kv_heads, tokens, head_dim) of more and more rows as one of so many tokens."""
    layers, _, heads, _, dim = parts[0].shape
    whole = _buffer((layers, sum(part.shape[1] for part in parts), heads, capacity, dim), parts[0])
    first = 0
    for part in parts:
        whole[:, first : first + part.shape[1], :, : part.shape[3]] = part
        first += part.shape[1]
    return whole


def _buffer(shape: tuple[int, int, int, int, int], like: Tensor) -> Tensor:
    """Room for keys or values. Where rows have different lengths, what a shorter one has not written is masked, and a
    mask does not hide what is no number: so it is zero. A single row sees nothing but what it has written, and zeros
    for the longest answer would take more time than a token."""
    return like.new_empty(shape) if shape[1] == 1 else like.new_zeros(shape)
