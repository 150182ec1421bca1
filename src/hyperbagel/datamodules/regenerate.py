"""On-policy data for draft heads: the target answers the questions of documents anew."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from hyperbagel.bagel.branch_checkpoint import base_hash
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import ImageSegment, LatentSegment, Segment, TextSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.datamodules.documents import InterleavedDocument, TextPart
from hyperbagel.datamodules.packing import pack
from hyperbagel.datamodules.pipeline import DocumentBuilder
from hyperbagel.datamodules.shards import Sample, find_rewritten, read_samples
from hyperbagel.datamodules.skipped import SkippedSampleError
from hyperbagel.datamodules.writer import ShardWriter
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.loading import Proposing
from hyperbagel.decoding.queue import AnswerQueue, Request
from hyperbagel.decoding.speculative import Speculator
from hyperbagel.files import naming, write_bytes, write_json
from hyperbagel.flow.randomness import step_generator
from hyperbagel.messages import clip

log = logging.getLogger(__name__)

STATE = ".regeneration"
"""Folder inside the output folder for the answers of unfinished shards."""


@dataclass(frozen=True)
class RegenerationSettings:
    """How answers are made anew."""

    batch_size: int = 16
    """Documents answered at once; where one is finished, the next takes its place."""
    max_tokens: int = 256
    """Longest answer, in tokens."""
    keep_long: bool = False
    """Keep the beginning of longer answers, which is as good for draft heads (they learn the target's distribution, not
    where the text ends), instead of dropping the document."""
    temperature: float = 0.0
    """Temperature of sampling; 0 takes the greedy answer."""
    top_p: float = 1.0
    """Nucleus mass kept when sampling."""
    seed: int = 0
    """Seed of the sampling."""


@dataclass
class RegenerationSummary:
    """What became of the samples."""

    documents: int = 0
    """Documents written."""
    answers: int = 0
    """Answers in them."""
    without_answers: int = 0
    """Documents that ask nothing."""
    cut: int = 0
    """Documents dropped because an answer was empty or too long."""
    skipped: int = 0
    """Unusable samples."""

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents with {self.answers:,} answers written; left out: {self.cut:,} with an empty "
            f"or too long answer, {self.without_answers:,} that ask nothing, {self.skipped:,} unusable"
        )


@dataclass
class _Turns:
    """A document being answered. segments: as the model reads it, without pictures to be generated; given: number of
    the segment of each answer; answers: new texts so far; complete: whether all so far ended by themselves."""

    sample: Sample
    segments: list[Segment]
    given: list[int]
    answers: list[str] = field(default_factory=list)
    complete: bool = True

    @property
    def open(self) -> bool:
        """Whether there is something left to answer."""
        return self.complete and len(self.answers) < len(self.given)


class Regenerator:
    """Answers every text with loss anew, each after the new answers before it.

    speculator: target, and a draft of earlier training if there is one; builder: how documents become segments, and
    what answers begin with.
    """

    def __init__(self, speculator: Speculator, builder: DocumentBuilder, settings: RegenerationSettings) -> None:
        self.speculator, self.builder, self.settings = speculator, builder, settings
        self.tokenizer: Tokenizer = builder.tokenizer
        self.model: Bagel = speculator.model
        self.prefix: list[int] = builder.answer_prefix.tolist()

    def run(self, shards: str | Sequence[str], out: str | Path) -> RegenerationSummary:
        """One output shard for each input shard, under its name; what is finished is left alone, and answers of a shard
        that was interrupted are kept, unless the input shard changed since.

        Raises FileNotFoundError for missing shards, ValueError when out holds them, FileExistsError when it holds the
        answers of another model or other settings.
        """
        out = Path(out)
        paths = find_rewritten(shards, out / STATE, out)
        self._begin(paths, out)
        summary = RegenerationSummary()
        for path in tqdm(paths, "shards"):
            if not (out / path.name).exists():
                self._shard(path, out, summary)
        return summary

    def _begin(self, paths: Sequence[Path], out: Path) -> None:
        """Note what the answers are of; where that was done, see that it is the same."""
        record = out / STATE / "settings.json"
        settings = {key: value for key, value in asdict(self.settings).items() if key != "batch_size"}
        now = {"model": base_hash(self.model), "answer_prefix": self.prefix, **settings}
        shards = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}
        if record.is_file():
            before = json.loads(record.read_text())
            known = before.pop("shards")
            changed = [
                f"{key} was {clip(before.get(key), 60)}, now {clip(now[key], 60)}"
                for key in now
                if before.get(key) != now[key]
            ]
            if changed:
                raise FileExistsError(
                    f"{out}: holds answers of another run ({', '.join(changed)}); repeat it as it was, or write "
                    "elsewhere"
                )
            for name in (name for name, state in shards.items() if known.get(name, state) != state):
                log.warning("%s: changed since it was answered; it is answered anew", name)
                (out / name).unlink(missing_ok=True)
                (out / STATE / f"{name}.jsonl").unlink(missing_ok=True)
            shards = known | shards
        write_json(record, {**now, "shards": shards})

    def _shard(self, path: Path, out: Path, summary: RegenerationSummary) -> None:
        journal = out / STATE / f"{path.name}.jsonl"
        journal.parent.mkdir(parents=True, exist_ok=True)
        known = _read_journal(journal)
        with naming(journal), journal.open("a") as answers, tqdm(desc=path.name, unit="document", leave=False) as bar:
            asked = (turns for turns in map(self._turns, _samples(path)) if turns and turns.sample.key not in known)
            for turns in self._answer(asked):
                known[turns.sample.key] = turns.answers if turns.complete else None
                answers.write(json.dumps({"key": turns.sample.key, "answers": known[turns.sample.key]}) + "\n")
                answers.flush()
                bar.update()
        unfinished = out / STATE / (path.stem + "-{:06d}.tar")
        for stale in unfinished.parent.glob(f"{path.stem}-*.tar*"):
            stale.unlink()
        with ShardWriter(unfinished, 2**62, 2**62) as writer:
            for sample in _samples(path, summary):
                self._write(writer, sample, known.get(sample.key, []), summary)
        if writer.shards:
            os.replace(writer.shards[0], out / path.name)
        journal.unlink()

    def _turns(self, sample: Sample) -> _Turns | None:
        """What a sample asks; None if nothing, or if it cannot be used."""
        try:
            built = self.builder.build(sample)
        except SkippedSampleError:
            return None
        segments = [
            s
            for s in pack([built], "", []).unpack().documents[0]
            if not (isinstance(s, ImageSegment | LatentSegment) and s.loss)
        ]
        given = [i for i, s in enumerate(segments) if isinstance(s, TextSegment) and s.loss]
        return _Turns(sample, segments, given) if given and given[0] > 0 else None

    def _answer(self, documents: Iterator[_Turns]) -> Iterator[_Turns]:
        """All turns of all documents, several documents at once, in the order in which they are finished."""
        settings = self.settings
        eos = self.model.config.tokens.eos
        decoding = DecodingSettings(settings.max_tokens + 1, settings.temperature, settings.top_p, stop=(eos,))
        queue = AnswerQueue(self.speculator, decoding, settings.batch_size, self.prefix)
        waiting = deque(map(self._request, islice(documents, settings.batch_size)))
        for request, ids in queue.answer(waiting):
            turns: _Turns = request.mark
            self._note(turns, ids)
            if turns.open:
                waiting.appendleft(self._request(turns))
                continue
            waiting.extend(map(self._request, islice(documents, 1)))
            yield turns

    def _request(self, turns: _Turns) -> Request:
        """The next turn of a document. Its draws do not depend on the other documents."""
        number = len(turns.answers)
        asked = [_moved(segment, self.model) for segment in turns.segments[: turns.given[number]]]
        return Request(asked, step_generator(self.settings.seed, 0, 0, purpose=f"{turns.sample.key}/{number}"), turns)

    def _note(self, turns: _Turns, ids: list[int]) -> None:
        """Take an answer over as what the next turn follows on."""
        limit = self.settings.max_tokens
        ended, ids = len(ids) <= limit, ids[:limit]
        text = self.tokenizer.decode(ids)
        if not ended:
            text = text.rstrip("\ufffd")  # the limit may fall inside of a character
        turns.complete = (ended or self.settings.keep_long) and bool(text.strip())
        learnt = torch.tensor([*self.prefix, *ids], dtype=torch.long)
        turns.segments[turns.given[len(turns.answers)]] = TextSegment(learnt)
        turns.answers.append(text)

    def _write(
        self, writer: ShardWriter, sample: Sample, answers: list[str] | None, summary: RegenerationSummary
    ) -> None:
        if not answers:
            summary.cut += answers is None
            summary.without_answers += answers is not None
            return
        document, new = sample.document(), iter(answers)
        parts = tuple(
            replace(part, text=next(new)) if isinstance(part, TextPart) and part.loss else part
            for part in document.parts
        )
        writer.rewrite(sample, InterleavedDocument(parts, document.meta | {"regenerated": True}))
        summary.documents += 1
        summary.answers += len(answers)


def _moved(segment: Segment, model: Bagel) -> Segment:
    if isinstance(segment, TextSegment):
        return segment
    return type(segment)(segment.pixels.to(model.device, model.dtype))  # type: ignore[union-attr,call-arg]


def _samples(path: Path, summary: RegenerationSummary | None = None) -> Iterator[Sample]:
    """The usable samples of a shard; others are counted where there is a summary."""
    for found in read_samples(path):
        if isinstance(found, Sample):
            yield found
        elif summary is not None:
            summary.skipped += 1


def _read_journal(path: Path) -> dict[str, list[str] | None]:
    """Answers by key; a last line that was cut off is left out."""
    known: dict[str, list[str] | None] = {}
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < len(lines):
            write_bytes(path, b"".join(whole))
        for entry in map(json.loads, whole):
            known[entry["key"]] = entry["answers"]
    return known


def regenerate(
    model: Bagel,
    builder: DocumentBuilder,
    shards: str | Sequence[str],
    out: str | Path,
    settings: RegenerationSettings | None = None,
    proposing: Proposing | None = None,
) -> RegenerationSummary:
    """Let `model` answer the documents of shards anew, faster with a draft head or phrases; see `Regenerator`."""
    speculator = Speculator(model, *(proposing or Proposing()))
    return Regenerator(speculator, builder, settings or RegenerationSettings()).run(shards, out)
