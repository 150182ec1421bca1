"""What a draft head has not read of the documents that are being answered; it reads when something is drafted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.decoding.drafter import Drafter
from hyperbagel.decoding.fused import RopeTable
from hyperbagel.decoding.proposal import Proposal, ProposalSettings
from hyperbagel.decoding.rows import DraftMemory, DraftState, Rows


class Written(NamedTuple):
    """A pass of the target. streams: its residual streams by entry, each (B, n, D); paths: which of the n tokens were
    kept of each document; following: the ids behind each of these; position: rope position of the first."""

    streams: Sequence[Tensor]
    paths: list[list[int]]
    following: list[list[int]]
    position: list[int]


class Begun(NamedTuple):
    """Answers begin. memory: what the draft has of their context; first: the token that all begin with."""

    memory: DraftMemory
    first: int


class Unseen:
    """The draft's caches of the documents that are being answered, and the rows that they lack.

    memory: what the draft has of their context, if it is known; room: for how many more tokens; begun: how many
    documents there are, and the token that their answers begin with.
    """

    def __init__(self, drafter: Drafter, memory: DraftMemory | None, room: int, begun: tuple[int, int]) -> None:
        self.drafter, self.memory, self.room = drafter, memory, room
        self.batch, first = begun
        self.state: DraftState | None = None
        self.known = None if memory is None else memory.state
        self.pieces: list[Rows | Written | Begun] = []
        if memory is not None:
            self.pieces += [] if memory.unread is None else [memory.unread]
            self.pieces.append(Begun(memory, first))

    @property
    def ready(self) -> bool:
        """Whether there is a row to draft from."""
        return bool(self.pieces)

    def add(self, written: Written) -> None:
        """A pass of the target is over."""
        self.pieces.append(written)

    def propose(self, table: RopeTable, settings: ProposalSettings) -> Proposal | None:
        """Read what is unread, and propose what follows."""
        rows, context = self._rows(), self.memory if self.state is None else None
        state, more = self._opened(max(rows.counts)), max(rows.counts)
        ahead = settings.length * (1 if settings.tree is None else settings.tree.width)
        if state.layers.free < more + ahead:  # a document that came later has more to read than the others have room
            self.state = state = state.copy(more + self.room)
        proposal = self.drafter.propose(state, rows, table, settings)
        self.pieces = []
        if context is not None and context.unread is not None:
            # The next turn of a conversation need not read this again.
            before = [0] * self.batch if context.state is None else context.state.layers.lengths
            lengths = [b + count for b, count in zip(before, context.unread.counts, strict=True)]
            context.state, context.unread = state.upto(lengths), None
        return proposal

    def select(self, rows: Sequence[int]) -> None:
        """Some of the documents go on."""
        self.pieces = [self._rows().select(rows)]
        self.state = None if self.state is None else self.state.select(rows)
        self.known = None if self.known is None else self.known.select(rows)
        self.memory, self.batch = None, len(rows)

    def absorb(self, other: Unseen, table: RopeTable) -> None:
        """Take over other documents of no earlier turns, which nothing was drafted for yet. table: of their
        positions."""
        if self.state is not None:
            other.read_context(table)
            assert other.state is not None
            self.state = self.state.beside(other.state)
        self.pieces = [Rows.stacked([self._rows(), other._rows()])]
        self.memory, self.batch = None, self.batch + other.batch

    def read_context(self, table: RopeTable) -> None:
        """Read the context, though nothing is drafted."""
        unread = None if self.memory is None else self.memory.unread
        state = self._opened(0 if unread is None else max(unread.counts))
        if unread is not None:
            self.drafter.follow(state, unread, table)
            self.pieces = self.pieces[1:]

    def _opened(self, more: int) -> DraftState:
        """Caches with room for so many rows beside the usual."""
        if self.state is None:
            room = more + self.room
            self.state = self.drafter.empty_state(self.batch, room) if self.known is None else self.known.copy(room)
        return self.state

    def _rows(self) -> Rows:
        return Rows.joined([self._rows_of(piece) for piece in self.pieces])

    def _rows_of(self, piece: Rows | Written | Begun) -> Rows:
        if isinstance(piece, Written):
            return self._rows_written(piece)
        if isinstance(piece, Begun):
            return piece.memory.followed(self.drafter.embed[piece.first].expand(self.batch, 1, -1))
        return piece

    def _rows_written(self, written: Written) -> Rows:
        """The rows of accepted tokens, from the target's own hidden states."""
        counts = list(map(len, written.paths))
        longest, device = max(counts), self.drafter.embed.device
        features = {entry: written.streams[entry] for entry in self.drafter.entries}
        if all(path == list(range(len(path))) for path in written.paths):
            features = {entry: value.narrow(1, 0, longest) for entry, value in features.items()}
        else:
            index = torch.tensor([path + [0] * (longest - len(path)) for path in written.paths], device=device)
            batch = torch.arange(len(counts), device=device)[:, None]
            features = {entry: value[batch, index] for entry, value in features.items()}
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in written.following], device=device)
        position = torch.tensor(written.position, device=device)[:, None] + torch.arange(longest, device=device)
        return Rows(features, F.embedding(ids, self.drafter.embed), position, counts)
