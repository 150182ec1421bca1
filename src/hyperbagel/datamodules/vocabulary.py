"""Counts in texts of shards: tokens and phrases of answers, for drafting, and words without a token."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hyperbagel.bagel.segments import TextSegment
from hyperbagel.bagel.tokenizer import Tokenizer, words
from hyperbagel.datamodules.documents import InterleavedDocument, TextPart
from hyperbagel.datamodules.shards import Sample, find_shards, read_samples
from hyperbagel.datamodules.sources import Samples, ShardSamples
from hyperbagel.draft.phrases import Phrases, count_phrases
from hyperbagel.draft.vocabulary import count_tokens, frequent_tokens
from hyperbagel.messages import clip

_SHOWN = 12
_LOOKED_AT = 200


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


def answer_phrases(shards: str | Sequence[str], tokenizer: Tokenizer, answer_prefix: str = "") -> Phrases:
    """The phrases of the answers, from their first token to the end of text. answer_prefix: what they begin with.

    Raises FileNotFoundError for missing shards, ValueError for shards without answers.
    """
    bos, eos, prefix = tokenizer.tokens.bos, tokenizer.tokens.eos, tokenizer.encode(answer_prefix).tolist()
    with tempfile.TemporaryDirectory() as cache:
        documents = _answers(find_shards(shards, Path(cache)), tokenizer)
        phrases = count_phrases(
            [bos, *prefix, *answer.ids.tolist(), eos] for document in documents for answer in document
        )
    if not len(phrases):
        raise ValueError(f"{shards}: no document has an answer (a text with loss) whose phrases could be counted")
    return phrases


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


@dataclass
class SpelledWords:
    """The words of texts, and those that the tokenizer of a small world has no token for and spells in bytes.

    A model reads such a word as a row of letters that it never saw together, and has to learn it from the data alone.

    known, spelled: in how many texts each word comes.
    """

    known: Counter[str] = field(default_factory=Counter)
    spelled: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """`3 of 20 words are spelled in bytes: unicorn (4 texts), ...`, the most frequent first."""
        number, most = len(self.spelled), self.spelled.most_common(_SHOWN)
        told = ", ".join(f"{word} ({count} texts)" if count > 1 else word for word, count in most)
        more = f" and {number - len(most)} more" if number > len(most) else ""
        listed = f": {clip(told, 500)}{more}" if number else ""
        return f"{number} of {number + len(self.known)} words are spelled in bytes{listed}"


def spelled_words(counts: Mapping[str, int], tokenizer: Tokenizer) -> SpelledWords:
    """Tell words with a token from those without. counts: how often each comes, see `words_of`.

    A tokenizer that is not of a small world (its `knows` is empty) spells none.
    """
    unknown = set(tokenizer.unknown_words(" ".join(counts)))
    found = SpelledWords()
    for word, count in counts.items():
        (found.spelled if word in unknown else found.known)[word] = count
    return found


def source_words(samples: Samples, tokenizer: Tokenizer) -> SpelledWords:
    """The words in the texts of a source of shards, of up to 200 documents that are evenly spread over it.

    Nothing is read for a tokenizer that is not of a small world, nor of a source that draws its samples.
    """
    if not tokenizer.knows or not isinstance(samples, ShardSamples):
        return SpelledWords()
    number = min(len(samples), _LOOKED_AT)
    counts = Counter[str]()
    for place in range(number):
        counts.update(words_of(samples.read(place * len(samples) // number).document()))
    return spelled_words(counts, tokenizer)


def words_of(document: InterleavedDocument) -> Iterator[str]:
    """The different words of each text of a document."""
    return (word for part in document.parts if isinstance(part, TextPart) for word in words(part.text))
