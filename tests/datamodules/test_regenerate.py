"""Regenerated answers: the target's own, turn by turn, whatever is interrupted."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperbagel.bagel.images import ImageTransform
from hyperbagel.bagel.segments import TextSegment, ViTSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.datamodules.pipeline import DocumentBuilder, Formatting
from hyperbagel.datamodules.regenerate import RegenerationSettings, Regenerator, regenerate
from hyperbagel.datamodules.writer import ShardWriter
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.loading import Proposing
from hyperbagel.decoding.speculative import Speculator
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead
from hyperbagel.scenes.vocabulary import tokenizer_folder
from tests.nano import nano_bagel

PICTURES = ImageTransform(max_size=32, min_size=16, stride=8)
SETTINGS = RegenerationSettings(batch_size=3, max_tokens=100)


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    """A target that says a few tokens and stops: from time to time its eos is the likeliest."""
    model = nano_bagel(seed=1)
    with torch.no_grad():
        model.understanding.lm_head.weight[model.config.tokens.eos] *= -3
    return model


def builder(answer_prefix: str = "") -> DocumentBuilder:
    return DocumentBuilder(Formatting(str(tokenizer_folder()), PICTURES, PICTURES, answer_prefix=answer_prefix))


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), "red").save(buffer, "png")
    return buffer.getvalue()


def write(folder: Path, shards: int = 2, samples: int = 5) -> Path:
    for shard in range(shards):
        with ShardWriter(folder / "in-{:03d}.tar", first=shard) as writer:
            for i in range(samples):
                turns = [{"type": "image", "file": "0.png"}]
                for turn in range(1 + i % 2):
                    turns += [{"type": "text", "text": "how many stars " * (1 + i)}]
                    turns += [{"type": "text", "text": f"old {turn}", "loss": True}]
                document = {"segments": turns if i else turns[:-1], "meta": {"kind": "question"}}
                writer.write(f"s{shard}-{i}", document, {"0.png": png()})
    return folder


def read(folder: Path) -> dict[str, dict]:  # type: ignore[type-arg]
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    found[member.name.removesuffix(".json")] = json.load(tar.extractfile(member))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("prefix", ["", "the answer is "])
def test_answers_are_the_targets_own_behind_its_earlier_ones(model, tmp_path: Path, prefix: str) -> None:  # type: ignore[no-untyped-def]
    source = write(tmp_path / "in")
    summary = regenerate(model, builder(prefix), str(source), tmp_path / "out", SETTINGS)
    made, tokenizer = read(tmp_path / "out"), Tokenizer.from_pretrained(tokenizer_folder())
    assert summary.without_answers == 2 and summary.documents == len(made) and summary.documents + summary.cut == 8
    assert len(made) >= 4, "the target has to end most of its answers"
    assert not list((tmp_path / "out" / ".regeneration").glob("*.jsonl"))
    settings, begin = DecodingSettings(SETTINGS.max_tokens + 1), tokenizer.encode(prefix).tolist()
    for document in made.values():
        assert document["meta"] == {"kind": "question", "regenerated": True}
        picture = ViTSegment(PICTURES(Image.new("RGB", (24, 16), "red")))
        before = [picture]
        for segment in document["segments"][1:]:
            if not segment["loss"]:
                before.append(TextSegment(tokenizer.encode(segment["text"])))
                continue
            ids = decode_text(model, model.prefill([before]), settings, prefix=begin)[0]
            assert segment["text"] == tokenizer.decode(ids) and "old" not in segment["text"]
            before.append(TextSegment(torch.tensor([*begin, *ids])))


def test_interrupted_runs_go_on_and_give_the_same_shards(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    source = write(tmp_path / "in")
    regenerate(model, builder(), str(source), tmp_path / "whole", SETTINGS)
    answer = Regenerator._answer

    def interrupted(self: Regenerator, documents: Iterator) -> Iterator:  # type: ignore[type-arg]
        for done, turns in enumerate(answer(self, documents)):
            if done == 2:
                raise KeyboardInterrupt
            yield turns

    with monkeypatch.context() as patch:
        patch.setattr(Regenerator, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Regenerator(Speculator(model), builder(), SETTINGS).run(str(source), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))
    journal = tmp_path / "out" / ".regeneration" / "in-000.tar.jsonl"
    assert len(journal.read_text().splitlines()) == 2
    with journal.open("a") as file:
        file.write('{"key": "s0-4", "ans')  # cut off in the middle of a line
    regenerate(model, builder(), str(source), tmp_path / "out", SETTINGS)
    for path in (tmp_path / "whole").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_depend_on_how_many_are_written_at_once(model, tmp_path: Path, temperature: float) -> None:  # type: ignore[no-untyped-def]
    """Nor, where they are greedy, on a draft head."""
    source = write(tmp_path / "in")
    head = DraftHead.from_target(DraftConfig(layers=1), model) if temperature == 0 else None
    for size in (1, 3, 16):
        settings = replace(SETTINGS, batch_size=size, temperature=temperature, max_tokens=40, keep_long=True)
        regenerate(
            model, builder(), str(source), tmp_path / str(size), settings, Proposing(head if size == 3 else None)
        )
    for path in (tmp_path / "1").glob("*.tar"):
        for size in ("3", "16"):
            assert path.read_bytes() == (tmp_path / size / path.name).read_bytes()


def test_input_is_never_overwritten(model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = write(tmp_path / "in", shards=1, samples=1)
    with pytest.raises(ValueError, match="give another output folder"):
        regenerate(model, builder(), str(source), source)


def test_answers_of_another_run_or_of_older_shards_are_not_kept(model, tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    source = write(tmp_path / "in", samples=3)
    regenerate(model, builder(), str(source), tmp_path / "out", SETTINGS)
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    for change, message in (
        ({"max_tokens": 50}, "max_tokens was 100, now 50"),
        ({"temperature": 0.5}, "temperature was"),
    ):
        with pytest.raises(FileExistsError, match=message):
            regenerate(model, builder(), str(source), tmp_path / "out", replace(SETTINGS, **change))
    with pytest.raises(FileExistsError, match="answer_prefix was"):
        regenerate(model, builder("the answer is "), str(source), tmp_path / "out", SETTINGS)
    with pytest.raises(FileExistsError, match="model was"):
        regenerate(nano_bagel(seed=2), builder(), str(source), tmp_path / "out", SETTINGS)
    (source / "in-001.tar").unlink()
    write(tmp_path / "more", samples=5)
    (tmp_path / "more/in-001.tar").rename(source / "in-001.tar")
    regenerate(model, builder(), str(source), tmp_path / "out", replace(SETTINGS, batch_size=2))
    assert "in-001.tar: changed since it was answered" in caplog.text and "in-000" not in caplog.text
    assert (tmp_path / "out/in-000.tar").stat().st_mtime_ns == finished["in-000.tar"]
    regenerate(model, builder(), str(source), tmp_path / "whole", SETTINGS)
    assert read(tmp_path / "out") == read(tmp_path / "whole")
