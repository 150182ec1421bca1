"""What a model tends to say: the token that mostly followed each short sequence of tokens in its answers.

Counting takes seconds and no training, and looking up takes no time. A model that speaks in set phrases, as small ones
do, is followed by them as far as by a draft head of little training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.tensors import metadata_of, read_tensors, write_tensors

LONGEST = 4
"""Tokens of the longest sequences that are counted."""
_METADATA = "hyperbagel_phrases"
_FACTOR = 0x9E3779B97F4A7C15
_ALL = 2**64 - 1


class _Sequences(NamedTuple):
    """Sequences of one length. keys: (N,) uint64 of each, ascending; following: (N,) ids that followed most often;
    shares: (N,) how often, of all times and one more."""

    keys: NDArray[np.uint64]
    following: NDArray[np.int32]
    shares: NDArray[np.float32]


class Phrases:
    """The likeliest continuations of sequences of up to `LONGEST` tokens.

    sequences: by length, from 1 on; `count_phrases` makes them.

    Examples:
        >>> from hyperbagel.draft.phrases import count_phrases
        >>> phrases = count_phrases([[5, 6, 7, 8], [5, 6, 7, 9], [5, 6, 7, 8]])
        >>> phrases.propose([1, 5], most=8, share=0.4)  # 3/4 and 3/4; 8 would leave 9/32
        [6, 7]
    """

    def __init__(self, sequences: Sequence[_Sequences]) -> None:
        self.sequences = list(sequences)

    def __len__(self) -> int:
        """How many sequences are known."""
        return sum(len(known.keys) for known in self.sequences)

    def propose(self, tokens: Sequence[int], most: int, share: float) -> list[int]:
        """What mostly follows, token by token, as long as the product of the shares is at least `share`.

        tokens: so far; most: tokens proposed at most.
        """
        window, proposed, product = list(tokens[-LONGEST:]), list[int](), 1.0
        while len(proposed) < most:
            token, sure = self._follower(window)
            product *= sure
            if product < share or not sure:
                break
            proposed.append(token)
            window = [*window[1 - LONGEST :], token]
        return proposed

    def _follower(self, window: Sequence[int]) -> tuple[int, float]:
        """The token behind the longest known end of a window, and its share; a share of 0 if none is known."""
        for length in range(min(LONGEST, len(window), len(self.sequences)), 0, -1):
            known, key = self.sequences[length - 1], _key(window[-length:])
            place = int(np.searchsorted(known.keys, np.uint64(key)))
            if place < len(known.keys) and int(known.keys[place]) == key:
                return int(known.following[place]), float(known.shares[place])
        return 0, 0.0


def _key(tokens: Sequence[int]) -> int:
    """A number that stands for a sequence; two sequences share one so rarely that it may well happen."""
    key = 0
    for token in tokens:
        key = (key * _FACTOR + token + 1) & _ALL
    return key


def count_phrases(answers: Iterable[Sequence[int]]) -> Phrases:
    """Count what follows what. answers: ids of each, with what it begins and ends with."""
    keys: list[list[NDArray[np.uint64]]] = [[] for _ in range(LONGEST)]
    following: list[list[NDArray[np.int32]]] = [[] for _ in range(LONGEST)]
    for answer in answers:
        ids = np.asarray(answer, dtype=np.uint64)
        for length in range(1, min(LONGEST, len(ids) - 1) + 1):
            key = np.zeros(len(ids) - length, dtype=np.uint64)
            for i in range(length):
                key = key * np.uint64(_FACTOR) + ids[i : len(ids) - length + i] + np.uint64(1)
            keys[length - 1].append(key)
            following[length - 1].append(ids[length:].astype(np.int32))
    return Phrases([_counted(np.concatenate(k), np.concatenate(f)) for k, f in zip(keys, following, strict=True) if k])


def _counted(keys: NDArray[np.uint64], following: NDArray[np.int32]) -> _Sequences:
    order = np.lexsort((following, keys))
    keys, following = keys[order], following[order]
    starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]) | (following[1:] != following[:-1])])
    counts = np.diff(np.r_[starts, len(keys)])
    keys, following = keys[starts], following[starts]
    order = np.lexsort((following, -counts, keys))  # the most frequent first; of equals always the same
    keys, following, counts = keys[order], following[order], counts[order]
    first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    shares = counts[first] / (np.add.reduceat(counts, first) + 1)
    return _Sequences(keys[first], following[first], shares.astype(np.float32))


def save_phrases(phrases: Phrases, path: str | Path) -> None:
    """Write them as one safetensors file, 16 bytes a sequence. Raises WriteError."""
    tensors = {
        f"{name}.{length}": torch.from_numpy(values.view(np.int64) if name == "keys" else values)
        for length, known in enumerate(phrases.sequences, 1)
        for name, values in known._asdict().items()
    }
    write_tensors(tensors, Path(path), {_METADATA: "1"})


def load_phrases(path: str | Path, vocab_size: int) -> Phrases:
    """Read phrases. Raises CheckpointError for a file without, or of a model with other tokens."""
    path = Path(path)
    if _METADATA not in metadata_of(path):
        raise CheckpointError(f"{path}: holds no phrases; count them with `hyperbagel data phrases`")
    tensors = {name: value.numpy() for name, value in read_tensors(path).items()}
    sequences = [
        _Sequences(tensors[f"keys.{n}"].view(np.uint64), tensors[f"following.{n}"], tensors[f"shares.{n}"])
        for n in range(1, len(tensors) // 3 + 1)
    ]
    if any(known.following.max(initial=0) >= vocab_size for known in sequences):
        raise CheckpointError(f"{path}: has tokens beyond {vocab_size:,}; count the phrases of this model's answers")
    return Phrases(sequences)
