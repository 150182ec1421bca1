"""Rows that a draft head has not seen yet, and what it keeps of a context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.bagel.transfer import moved
from hyperbagel.decoding.cache import RowCache


@dataclass
class Rows:
    """True rows that the draft has not seen yet, padded on the right.

    features: entry -> (B, n, D); embedded: (B, n, D) the tokens that follow; position: (B, n) rope positions;
    counts: how many rows each document has.
    """

    features: dict[int, Tensor]
    embedded: Tensor
    position: Tensor
    counts: list[int]

    @property
    def even(self) -> bool:
        """Whether all documents have equally many, so that there is no padding."""
        return all(count == self.position.shape[1] for count in self.counts)

    def select(self, rows: Sequence[int]) -> Rows:
        """Those of some documents."""
        return Rows(
            {entry: value[rows] for entry, value in self.features.items()},
            self.embedded[rows],
            self.position[rows],
            [self.counts[row] for row in rows],
        )

    @staticmethod
    def joined(pieces: Sequence[Rows]) -> Rows:
        """The rows of the same documents one after another; padding between them is squeezed out."""
        if len(pieces) == 1:
            return pieces[0]
        counts = [sum(part) for part in zip(*(piece.counts for piece in pieces), strict=True)]
        features = {entry: torch.cat([p.features[entry] for p in pieces], 1) for entry in pieces[0].features}
        embedded, position = (torch.cat([getattr(p, name) for p in pieces], 1) for name in ("embedded", "position"))
        rows = Rows(features, embedded, position, counts)
        if rows.even:
            return rows
        device = position.device
        lengths = [moved(torch.tensor(piece.counts), device)[:, None] for piece in pieces]
        present = [torch.arange(p.position.shape[1], device=device) < n for p, n in zip(pieces, lengths, strict=True)]
        order = torch.argsort(~torch.cat(present, 1), dim=1, stable=True)[:, : max(counts)]
        batch = torch.arange(len(counts), device=device)[:, None]
        features = {entry: value[batch, order] for entry, value in features.items()}
        return Rows(features, embedded[batch, order], position[batch, order], counts)

    @staticmethod
    def stacked(groups: Sequence[Rows]) -> Rows:
        """The rows of several groups of documents as those of one."""
        longest = max(group.position.shape[1] for group in groups)

        def padded(values: Sequence[Tensor]) -> Tensor:
            return torch.cat([F.pad(v, (0, 0) * (v.ndim - 2) + (0, longest - v.shape[1])) for v in values])

        return Rows(
            {entry: padded([group.features[entry] for group in groups]) for entry in groups[0].features},
            padded([group.embedded for group in groups]),
            padded([group.position for group in groups]),
            [count for group in groups for count in group.counts],
        )


@dataclass(frozen=True)
class DraftState:
    """Keys and values of the rows that a draft head has read: of its decoder layers, and of `Dec`, if it has one."""

    layers: RowCache
    decoder: RowCache | None

    def copy(self, room: int) -> DraftState:
        """The same state with room for that many more tokens."""
        return DraftState(self.layers.copy(room), None if self.decoder is None else self.decoder.copy(room))

    def select(self, rows: Sequence[int]) -> DraftState:
        """That of some documents."""
        return DraftState(self.layers.select(rows), None if self.decoder is None else self.decoder.select(rows))

    def upto(self, lengths: Sequence[int]) -> DraftState:
        """An earlier state of the same documents, which shares its memory."""
        return DraftState(self.layers.upto(lengths), None if self.decoder is None else self.decoder.upto(lengths))

    def beside(self, other: DraftState) -> DraftState:
        """One state of the documents of both."""
        decoder = None if self.decoder is None or other.decoder is None else self.decoder.beside(other.decoder)
        return DraftState(self.layers.beside(other.layers), decoder)


@dataclass
class DraftMemory:
    """What a draft head has of a context. Reading waits until something is drafted: short answers end before.

    state: of the rows that were read, None before the first; unread: the rows that wait; pending: the last token's
    features by entry, each (B, 1, D), whose row waits for the token that follows; position: (B, 1) rope position of it.
    """

    state: DraftState | None
    unread: Rows | None
    pending: dict[int, Tensor]
    position: Tensor

    def followed(self, embedded: Tensor) -> Rows:
        """The row of the last token, now that the embedding (B, 1, D) of the one behind it is known."""
        return Rows(self.pending, embedded, self.position, [1] * len(embedded))
