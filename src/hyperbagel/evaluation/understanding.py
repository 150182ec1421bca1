"""Accuracy of what a model says about pictures: caption facts, short answers, yes/no.

Pure functions over texts. Answers that cannot be read are wrong, and counted; nothing is guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

from hyperbagel.evaluation.statistics import Interval, mean_interval
from hyperbagel.scenes.captions import parse_caption

KINDS = ("caption", "question", "yes_no")

FactReader: TypeAlias = Callable[[str], Sequence[Hashable]]
"""Caption -> the facts that it states; a sentence that says nothing checkable is to give a fact that is never true."""


@dataclass(frozen=True, slots=True)
class UnderstandingSample:
    """One thing to be said about a picture.

    key: the document, shared by the samples of one picture (they are not independent). kind: one of `KINDS`.
    prompt: what the model is asked. answer: what is right: a caption that states all facts, a short answer, or yes/no.
    topic: what the answer is about, for a breakdown.
    """

    key: str
    kind: str
    prompt: str
    answer: str
    topic: str = ""

    def __post_init__(self) -> None:
        """Refuse an unknown kind, and yes/no questions with another answer."""
        if self.kind not in KINDS:
            raise ValueError(f"sample {self.key!r}: unknown kind {self.kind!r}; use one of {', '.join(KINDS)}")
        if self.kind == "yes_no" and self.answer not in ("yes", "no"):
            raise ValueError(f"sample {self.key!r}: the answer to a yes/no question cannot be {self.answer!r}")


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of right ones with its confidence interval; documents are what is resampled.

    n: number of answers. right, wrong, missed: facts of captions, or answers (none is then missed). A fact that is
    stated wrongly is both wrong and missed, but weighs once: share = right / max(stated, true facts), summed over
    captions. unreadable: answers that say neither yes nor no, or captions without a single fact that is true.
    """

    share: Interval
    n: int
    right: int
    wrong: int
    missed: int
    unreadable: int


@dataclass(frozen=True, slots=True)
class UnderstandingReport:
    """Accuracies by kind (those that occur) and, within questions and yes/no, by topic."""

    kinds: Mapping[str, Accuracy]
    topics: Mapping[str, Accuracy] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """For loggers: understanding/{caption,question,yes_no}."""
        return {f"understanding/{kind}": accuracy.share.estimate for kind, accuracy in self.kinds.items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def evaluate_understanding(
    answers: Sequence[str], samples: Sequence[UnderstandingSample], read_facts: FactReader = parse_caption
) -> UnderstandingReport:
    """Mark answers, one per sample in the same order. read_facts: how captions state facts (of the scenes world).

    Raises ValueError if there is not one answer a sample, or no sample.
    """
    if len(answers) != len(samples) or not samples:
        raise ValueError(f"need one answer a sample and at least one: {len(answers)} answers, {len(samples)} samples")
    marks = [_mark(answer, sample, read_facts) for answer, sample in zip(answers, samples, strict=True)]
    topics = sorted({(mark.sample.kind, mark.sample.topic) for mark in marks if mark.sample.topic})
    return UnderstandingReport(
        kinds={
            kind: _accuracy(group) for kind in KINDS if (group := [mark for mark in marks if mark.sample.kind == kind])
        },
        topics={
            f"{kind}/{topic}": _accuracy([m for m in marks if (m.sample.kind, m.sample.topic) == (kind, topic)])
            for kind, topic in topics
        },
    )


def document_samples(key: str, document: Mapping[str, Any]) -> list[UnderstandingSample]:
    """The samples of a document of the project's schema: each answered text segment with the text before it.

    `meta["kind"]` must be "caption", or `meta["topics"]` must name each answer's topic, "yes_no" being one; documents
    of other kinds have no samples.
    """
    meta = document["meta"]
    segments = document["segments"]
    turns = [
        (before["text"], segment["text"])
        for before, segment in pairwise(segments)
        if segment["type"] == "text" and segment.get("loss") and before["type"] == "text"
    ]
    if meta.get("kind") == "caption":
        return [UnderstandingSample(key, "caption", prompt, answer) for prompt, answer in turns]
    if "topics" not in meta:
        return []
    if len(meta["topics"]) != len(turns):
        raise ValueError(f"document {key!r}: {len(meta['topics'])} topics for {len(turns)} answers")
    return [
        UnderstandingSample(key, "yes_no", prompt, answer, topic=answer)
        if topic == "yes_no"
        else UnderstandingSample(key, "question", prompt, answer, topic)
        for topic, (prompt, answer) in zip(meta["topics"], turns, strict=True)
    ]


def normalized(answer: str) -> str:
    """A short answer without case, surrounding punctuation, repeated blanks and a leading article."""
    words = answer.casefold().strip(" \t\r\n.,;:!?\"'。，！？").split()
    if len(words) > 1 and words[0] in ("a", "an", "the"):
        words = words[1:]
    return " ".join(words)


@dataclass(frozen=True, slots=True)
class _Mark:
    """The marking of one answer; weight: how many facts it was about."""

    sample: UnderstandingSample
    right: int
    wrong: int
    missed: int = 0
    unreadable: bool = False

    @property
    def weight(self) -> int:
        return self.right + max(self.wrong, self.missed)


def _mark(answer: str, sample: UnderstandingSample, read_facts: FactReader) -> _Mark:
    if sample.kind == "caption":
        return _mark_caption(answer, sample, read_facts)
    if sample.kind == "question":
        right = normalized(answer) == normalized(sample.answer)
        return _Mark(sample, int(right), int(not right), unreadable=not answer.strip())
    said = re.match(r"\W*(yes|no)\b", answer, re.IGNORECASE)
    right = said is not None and said[1].lower() == sample.answer
    return _Mark(sample, int(right), int(not right), unreadable=said is None)


def _mark_caption(answer: str, sample: UnderstandingSample, read_facts: FactReader) -> _Mark:
    true, stated = Counter(read_facts(sample.answer)), Counter(read_facts(answer))
    if not true:
        raise ValueError(f"sample {sample.key!r}: its answer states no facts, so no caption can be marked by it")
    right = (true & stated).total()
    return _Mark(sample, right, stated.total() - right, true.total() - right, unreadable=right == 0)


def _accuracy(marks: Sequence[_Mark]) -> Accuracy:
    values = [hit for mark in marks for hit in [1.0] * mark.right + [0.0] * (mark.weight - mark.right)]
    units = [mark.sample.key for mark in marks for _ in range(mark.weight)]
    return Accuracy(
        share=mean_interval(values, units),
        n=len(marks),
        right=sum(mark.right for mark in marks),
        wrong=sum(mark.wrong for mark in marks),
        missed=sum(mark.missed for mark in marks),
        unreadable=sum(mark.unreadable for mark in marks),
    )
