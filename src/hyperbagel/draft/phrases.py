"""What a model tends to say: the tokens that mostly followed each short sequence of tokens in its answers.

Counting takes seconds and no training, and looking up takes next to no time. A model that speaks in set phrases, as
small ones do, is followed by them as far as by a draft head of little training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.tensors import metadata_of, read_tensors, write_tensors

LONGEST = 5
"""Tokens of the longest sequences that are counted."""
KEPT = 4
"""Followers of a sequence that are kept: the most frequent ones."""
_DISCOUNT = 0.75
"""Taken from each count, for what was not seen (absolute discounting)."""
PHRASES = "hyperbagel_phrases"
"""Key of safetensors metadata of a file of phrases."""
_VERSION = "2"
_FACTOR = 0x9E3779B97F4A7C15
_ALL = 2**64 - 1


class Followers(NamedTuple):
    """What followed a sequence. tokens: the most frequent first; shares: how likely each is; rest: how likely
    something else, which is told by what followed a shorter one."""

    tokens: list[int]
    shares: list[float]
    rest: float


class _Sequences(NamedTuple):
    """Sequences of one length. keys: (N,) uint64 of each, ascending; starts: (N + 1,) where the followers of each
    begin; following: (M,) ids; shares: (M,) of each; rests: (N,)."""

    keys: NDArray[np.uint64]
    starts: NDArray[np.int32]
    following: NDArray[np.int32]
    shares: NDArray[np.float32]
    rests: NDArray[np.float32]


class _Times(NamedTuple):
    """Each time that a sequence of one length stood somewhere: its key, what followed, and the token before it."""

    keys: NDArray[np.uint64]
    following: NDArray[np.int32]
    before: NDArray[np.int64]


class Phrases:
    """The likeliest continuations of sequences of up to `LONGEST` tokens.

    sequences: by length, from 1 on; `count_phrases` makes them.

    Examples:
        >>> from hyperbagel.draft.phrases import count_phrases
        >>> phrases = count_phrases([[5, 6, 7, 8], [5, 6, 7, 9], [5, 6, 7, 8]])
        >>> phrases.after([5, 6, 7])  # twice of three times, and once, each less 3/4
        Followers(tokens=[8, 9], shares=[0.4166666567325592, 0.0833333358168602], rest=0.5)
    """

    def __init__(self, sequences: Sequence[_Sequences]) -> None:
        self.sequences = list(sequences)

    def __len__(self) -> int:
        """How many sequences are known."""
        return sum(len(known.keys) for known in self.sequences)

    def after(self, sequence: Sequence[int]) -> Followers | None:
        """What followed a sequence of 1 to `LONGEST` tokens; None for one that is not known."""
        if len(sequence) > len(self.sequences):
            return None
        known, key = self.sequences[len(sequence) - 1], np.uint64(_key(sequence))
        place = int(known.keys.searchsorted(key))
        if place == len(known.keys) or known.keys[place] != key:
            return None
        part = slice(known.starts[place], known.starts[place + 1])
        return Followers(known.following[part].tolist(), known.shares[part].tolist(), float(known.rests[place]))


def _key(tokens: Sequence[int]) -> int:
    """A number that stands for a sequence; two sequences share one so rarely that it may well happen."""
    key = 0
    for token in tokens:
        key = (key * _FACTOR + token + 1) & _ALL
    return key


def count_phrases(answers: Iterable[Sequence[int]]) -> Phrases:
    """Count what follows what. answers: ids of each, with what it begins and ends with.

    Shorter sequences are asked where longer ones are not known. So it is counted behind how many different tokens they
    stood with what followed, not how often (Kneser-Ney): what is said in one phrase alone says little elsewhere.
    """
    found: list[list[_Times]] = [[] for _ in range(LONGEST)]
    for number, answer in enumerate(answers):
        ids = np.asarray(answer, dtype=np.uint64)
        before = np.r_[-1 - number, ids.astype(np.int64)]  # every answer's beginning counts
        for length in range(1, min(LONGEST, len(ids) - 1) + 1):
            count = len(ids) - length
            key = np.zeros(count, dtype=np.uint64)
            for i in range(length):
                key = key * np.uint64(_FACTOR) + ids[i : count + i] + np.uint64(1)
            found[length - 1].append(_Times(key, ids[length:].astype(np.int32), before[:count]))
    joined = [_Times(*map(np.concatenate, zip(*times, strict=True))) for times in found if times]
    return Phrases([_counted(times, length == LONGEST) for length, times in enumerate(joined, 1)])


def _counted(times: _Times, all_times: bool) -> _Sequences:
    """all_times: count all of them, and not those behind different tokens."""
    order = np.lexsort((times.before, times.following, times.keys))
    keys, following, before = times.keys[order], times.following[order], times.before[order]
    if not all_times:
        different = _new(keys, following, before)
        keys, following = keys[different], following[different]
    first = np.flatnonzero(_new(keys, following))
    counts = np.diff(np.r_[first, len(keys)])
    keys, following = keys[first], following[first]
    order = np.lexsort((following, -counts, keys))  # the most frequent first; of equals always the same
    keys, following, counts = keys[order], following[order], counts[order]
    first = np.flatnonzero(_new(keys))
    number = np.diff(np.r_[first, len(keys)])
    totals = np.add.reduceat(counts, first)
    kept = np.arange(len(keys)) - first.repeat(number) < KEPT
    starts = np.r_[0, np.minimum(number, KEPT).cumsum()]
    shares = (counts - _DISCOUNT) / totals.repeat(number)
    rests = _DISCOUNT * number / totals
    return _Sequences(
        keys[first], starts.astype(np.int32), following[kept], shares[kept].astype(np.float32), rests.astype(np.float32)
    )


def _new(*columns: NDArray[Any]) -> NDArray[np.bool_]:
    """Where rows differ from the one before; the first does."""
    return np.r_[True, np.any([column[1:] != column[:-1] for column in columns], axis=0)]


def save_phrases(phrases: Phrases, path: str | Path) -> None:
    """Write them as one safetensors file, 24 bytes or a few more a sequence. Raises WriteError."""
    tensors = {
        f"{name}.{length}": torch.from_numpy(values.view(np.int64) if name == "keys" else values)
        for length, known in enumerate(phrases.sequences, 1)
        for name, values in known._asdict().items()
    }
    write_tensors(tensors, Path(path), {PHRASES: _VERSION})


def holds_phrases(path: Path) -> bool:
    """Whether a file holds phrases; not so if there is none. Raises CheckpointError for a broken file."""
    return path.is_file() and PHRASES in metadata_of(path)


def load_phrases(path: str | Path, vocab_size: int) -> Phrases:
    """Read phrases. Raises CheckpointError for a file without, of another version, or of a model with other tokens."""
    path = Path(path)
    version = metadata_of(path).get(PHRASES)
    if version != _VERSION:
        what = "holds no phrases" if version is None else "holds phrases as an earlier version counted them"
        raise CheckpointError(f"{path}: {what}; count them with `hyperbagel data phrases`")
    tensors = {name: value.numpy() for name, value in read_tensors(path).items()}
    tensors |= {name: values.view(np.uint64) for name, values in tensors.items() if name.startswith("keys")}
    lengths = range(1, len(tensors) // len(_Sequences._fields) + 1)
    sequences = [_Sequences(*(tensors[f"{name}.{n}"] for name in _Sequences._fields)) for n in lengths]
    if any(known.following.max(initial=0) >= vocab_size for known in sequences):
        raise CheckpointError(f"{path}: has tokens beyond {vocab_size:,}; count the phrases of this model's answers")
    return Phrases(sequences)
