"""Reduced draft vocabularies: the tokens that answers are mostly made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hyperbagel.bagel.segments import Document, TextSegment
from hyperbagel.files import write_text


def count_tokens(documents: Iterable[Document], vocab_size: int) -> Tensor:
    """How often each id occurs in answers: (vocab_size,) int64."""
    counts = torch.zeros(vocab_size, dtype=torch.long)
    for document in documents:
        for segment in document:
            if isinstance(segment, TextSegment) and segment.loss:
                counts += torch.bincount(segment.ids[segment.prefix :].cpu(), minlength=vocab_size)
    return counts


def frequent_tokens(counts: Tensor, size: int, always: Sequence[int] = ()) -> list[int]:
    """The `size` most frequent ids, ascending. counts: as `count_tokens` gives them; always: ids that are in whatever
    their count (the end of text).

    Raises ValueError for an impossible size.
    """
    if not len(set(always)) <= size <= len(counts) or size < 1:
        raise ValueError(
            f"a draft vocabulary of {size} must hold {len(set(always))} fixed ids and fit {len(counts)} in all"
        )
    ranked = counts.clone()
    ranked[list(always)] = torch.iinfo(torch.long).max
    # A stable order makes equal counts equal vocabularies.
    return sorted(torch.argsort(ranked, descending=True, stable=True)[:size].tolist())


def write_vocabulary(ids: Sequence[int], path: str | Path) -> None:
    """Write ids as a JSON list. Raises WriteError."""
    write_text(path, json.dumps(list(ids)) + "\n")


def read_vocabulary(path: str | Path, vocab_size: int) -> list[int]:
    """Read a JSON list of ids. Raises FileNotFoundError, or ValueError naming file and remedy."""
    try:
        ids = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not a JSON list of token ids ({error}); write it with `write_vocabulary`") from error
    if not isinstance(ids, list) or not ids or not all(isinstance(i, int) and 0 <= i < vocab_size for i in ids):
        raise ValueError(f"{path}: must be a JSON list of token ids below {vocab_size}; was it made for another model?")
    return sorted(set(ids))
