"""The order of batches: which samples are in which batch, a pure function of the seed and the batch's number.

Nothing here depends on how far loading got, on workers, or on a global random state. Resuming therefore is to go on
with the next number, and all ranks agree without talking to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class OrderedSource:
    """What the order of batches depends on in a source."""

    order: NDArray[np.int64]
    """(n,) int64, near numbers for samples of like size."""
    batch_size: int
    """Samples per batch on each rank."""
    weight: float | None = None
    """As in `Source`."""


@dataclass(frozen=True)
class OrderSettings:
    """How batches are made."""

    world: int = 1
    """Number of ranks that read different data."""
    seed: int | None = 0
    """Seed of the order; None keeps the order of the shards and reads the sources one after another."""
    window: int = 64
    """Number of batches among which samples are sorted by size, so that a batch has little padding (1: no sorting)."""
    batches_per_epoch: int | None = None
    """Batches per epoch on each rank, None for one pass over the (largest) source."""


@dataclass(frozen=True, slots=True)
class OrderedBatch:
    """One batch of one rank. number: in the run; source: index; turn: how often that source was read before."""

    number: int
    source: int
    turn: int
    samples: tuple[int, ...]


class BatchOrder:
    """The endless sequence of batches of one rank.

    In step k all ranks read the same source and samples of like size, so that they work equally long and use the
    same parameters. Within a turn of a source every sample comes once, on one rank; all ranks have equally many
    batches. (If a source's last samples are fewer than the ranks and batches cannot be levelled out, which needs
    batches of one sample, some samples come twice.) Raises ValueError for impossible settings.
    """

    def __init__(self, sources: Sequence[OrderedSource], settings: OrderSettings, rank: int = 0) -> None:
        if not 0 <= rank < settings.world:
            raise ValueError(f"rank {rank} is not one of {settings.world}")
        self.sources, self.settings, self.rank = list(sources), settings, rank
        self._turns = [_steps(len(s.order), s.batch_size, settings.world) for s in self.sources]
        self._shares = _shares(self.sources, self._turns, settings.batches_per_epoch)
        self._epoch: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None
        self._chunks: dict[int, tuple[int, list[NDArray[np.int64]]]] = {}

    def __len__(self) -> int:
        """Batches per epoch."""
        return sum(self._shares)

    def __getitem__(self, number: int) -> OrderedBatch:
        """Batch `number` of the run, counted from 0 over all epochs."""
        epoch, place = divmod(number, len(self))
        sources, occurrences = self._order(epoch)
        source = int(sources[place])
        turn, step = divmod(epoch * self._shares[source] + int(occurrences[place]), self._turns[source])
        chunk = self._turn(source, turn)[step]
        # The parts are sorted by size: rotating keeps one rank from always getting the small ones.
        part = np.array_split(chunk, self.settings.world)[(self.rank + number) % self.settings.world]
        return OrderedBatch(number, source, turn, tuple(part.tolist()))

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each batch of an epoch its source, and how many batches of that source come before it."""
        if self._epoch is None or self._epoch[0] != epoch:
            occurrences = np.concatenate([np.arange(share) for share in self._shares])
            sources = np.repeat(np.arange(len(self._shares)), self._shares)
            if self.settings.seed is not None:
                # One batch at a random place of each of a source's equal stretches: mixed evenly, but not by rote.
                jitter = np.random.default_rng([self.settings.seed, 0, epoch]).random(len(sources))
                order = np.argsort((occurrences + jitter) / np.asarray(self._shares)[sources], kind="stable")
                sources, occurrences = sources[order], occurrences[order]
            self._epoch = epoch, sources, occurrences
        return self._epoch[1:]

    def _turn(self, source: int, turn: int) -> list[NDArray[np.int64]]:
        """The samples of all ranks for each step of one turn of a source."""
        if source not in self._chunks or self._chunks[source][0] != turn:
            self._chunks[source] = turn, self._make_turn(source, turn)
        return self._chunks[source][1]

    def _make_turn(self, index: int, turn: int) -> list[NDArray[np.int64]]:
        source, settings = self.sources[index], self.settings
        size = source.batch_size * settings.world
        samples = np.arange(len(source.order))
        random = None if settings.seed is None else np.random.default_rng([settings.seed, 1, index, turn])
        if random:
            random.shuffle(samples)
        if settings.window > 1:
            windows = np.split(samples, range(size * settings.window, len(samples), size * settings.window))
            samples = np.concatenate([window[np.argsort(source.order[window], kind="stable")] for window in windows])
        chunks = _chunks(samples, source.batch_size, settings.world)
        return [chunks[i] for i in random.permutation(len(chunks))] if random else chunks


def _steps(samples: int, batch_size: int, world: int) -> int:
    return -(-samples // (batch_size * world))


def _chunks(samples: NDArray[np.int64], batch_size: int, world: int) -> list[NDArray[np.int64]]:
    """Cut into steps of batch_size * world samples, the last with fewer, but at least one per rank."""
    size = batch_size * world
    chunks = np.split(samples, range(size, len(samples), size))
    if len(chunks[-1]) < world:
        if batch_size > 1 and len(chunks) > 1:
            chunks[-2:] = np.array_split(np.concatenate(chunks[-2:]), 2)
        else:
            chunks[-1] = np.resize(np.concatenate([chunks[-1], samples]), world)
    return chunks


def _shares(sources: Sequence[OrderedSource], turns: Sequence[int], total: int | None) -> list[int]:
    """Batches per epoch of each source."""
    given = [source.weight for source in sources if source.weight is not None]
    if given and len(given) != len(sources):
        raise ValueError("give every source a `weight`, or none")
    if not given and total is None:
        return list(turns)
    weights = np.array(given or turns, dtype=float)
    if weights.sum() <= 0:
        raise ValueError("at least one source needs a `weight` above 0")
    weights /= weights.sum()
    if total is None:
        total = int(np.ceil(max(t / w for t, w in zip(turns, weights, strict=True) if w > 0) - 1e-9))
    exact = weights * total
    shares = np.floor(exact + 1e-9).astype(int)
    for i in np.argsort(shares - exact, kind="stable")[: total - shares.sum()]:  # largest remainders first
        shares[i] += 1
    if np.any((shares == 0) & (weights > 0)):
        raise ValueError(f"an epoch of {total} batches leaves none for some of {len(sources)} sources; make it longer")
    return [int(share) for share in shares]
