"""Counts the tokens in the answers of shards, for draft heads of a reduced vocabulary."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hyperbagel.bagel.segments import TextSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.datamodules.documents import TextPart
from hyperbagel.datamodules.shards import Sample, find_shards, read_samples
from hyperbagel.draft.vocabulary import count_tokens, frequent_tokens


def answer_vocabulary(shards: str | Sequence[str], tokenizer: Tokenizer, size: int) -> tuple[list[int], float]:
    """The `size` most frequent tokens of the answers, end of text among them, and their share of all tokens there.

    Raises FileNotFoundError for missing shards, ValueError for an impossible size or shards without answers.
    """
    with tempfile.TemporaryDirectory() as cache:
        counts = count_tokens(_answers(find_shards(shards, Path(cache)), tokenizer), tokenizer.size)
    if not (total := int(counts.sum())):
        raise ValueError(f"{shards}: no document has an answer (a text with loss) whose tokens could be counted")
    ids = frequent_tokens(counts, size, always=(tokenizer.tokens.eos,))
    return ids, int(counts[ids].sum()) / total


def _answers(paths: Sequence[Path], tokenizer: Tokenizer) -> Iterator[list[TextSegment]]:
    for path in paths:
        for sample in read_samples(path):
            if isinstance(sample, Sample):
                parts = sample.document().parts
                yield [
                    TextSegment(tokenizer.encode(part.text), loss=True)
                    for part in parts
                    if isinstance(part, TextPart) and part.loss
                ]
