"""The library's front door: what it gives is what the parts behind it give, one by one or together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import hyperbagel
from hyperbagel import Pipeline, load
from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.images import ImageError
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.flow.guidance import PAPER_GENERATION
from hyperbagel.flow.sampler import Sampler
from hyperbagel.pipeline.answers import TextStream, question_document
from hyperbagel.pipeline.painter import Painter
from hyperbagel.pipeline.results import Piece

PROMPT = "a photo of a red circle"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    loaded = load("scenes", branch="scenes/nfe6", draft="scenes/draft", device="cpu")
    loaded.speculator.clock = lambda: 0.0  # how busy the machine is would decide when to draft
    return loaded


def test_a_picture_is_the_painters_with_the_branch_in_its_steps(pipeline: Pipeline) -> None:
    picture = pipeline.generate(PROMPT, seed=3)
    assert (picture.image.size, picture.nfe) == ((64, 64), 6) and picture.seconds > 0
    with torch.inference_mode():
        painter = Painter(pipeline.model, pipeline.tokenizer, Sampler(6, 3.0, PAPER_GENERATION), pipeline._branch)
        (drawn,) = painter.generate([PROMPT], [3])
    assert drawn.permute(1, 2, 0).contiguous().numpy().tobytes() == picture.image.tobytes()
    assert pipeline.generate(PROMPT, steps=2).nfe == 2


def test_a_list_is_drawn_together_and_comes_out_as_one_by_one(pipeline: Pipeline) -> None:
    prompts = [PROMPT, "a photo of a blue star"]
    together = pipeline.generate(prompts, seed=[3, 4], steps=2)
    for prompt, seed, picture in zip(prompts, (3, 4), together, strict=True):
        alone = pipeline.generate(prompt, seed=seed, steps=2)
        assert near(alone.image, picture.image)
    first, second = pipeline.generate([PROMPT] * 2, steps=1)
    assert near(first.image, second.image)  # of one seed
    with pytest.raises(ValueError, match="1 seeds for 2 pictures: give one for all, or one each"):
        pipeline.generate(prompts, seed=[1])


def near(one: Image.Image, other: Image.Image) -> bool:
    """Equal but for rounding at the border of two grey levels."""
    first, second = (torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int() for image in (one, other))
    return int((first - second).abs().max()) <= 1


def test_pictures_and_their_files_are_edited_alike(pipeline: Pipeline, tmp_path: Path) -> None:
    source = pipeline.generate(PROMPT, steps=1)
    source.save(tmp_path / "source.png")
    one = pipeline.edit(source.image, "make it blue", steps=1)
    by_file, again = pipeline.edit([tmp_path / "source.png"] * 2, "make it blue", steps=1)
    assert near(one.image, by_file.image) and near(by_file.image, again.image) and one.nfe == 1
    assert one._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="1 instructions for 2 pictures: give one for all, or one each"):
        pipeline.edit([source.image] * 2, ["make it blue"])
    with pytest.raises(FileNotFoundError):
        pipeline.edit(tmp_path / "none.png", "make it blue")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError):
        pipeline.edit(tmp_path / "text.png", "make it blue")


def test_answers_are_those_of_plain_decoding_and_come_in_pieces(pipeline: Pipeline) -> None:
    picture = pipeline.generate(PROMPT).image
    pieces: list[str] = []
    answer = pipeline.ask("What color is the circle?", picture, stream=pieces.append)
    assert str(answer) == answer.text == "".join(pieces) == "red"
    assert 0 < answer.passes <= answer.tokens and answer.tokens_per_second > 0
    document = question_document(pipeline.model, pipeline.tokenizer, "Describe the image.", picture)
    (plain,) = decode_text(pipeline.model, pipeline.model.prefill([document]))
    described = pipeline.ask("Describe the image.", picture)
    assert described.text == pipeline.tokenizer.decode(plain) and described.passes < described.tokens
    assert len(pipeline.ask("What is a circle?", settings=DecodingSettings(3)).text.split()) <= 3


def test_pieces_tell_whether_they_were_drafted(pipeline: Pipeline) -> None:
    """In plain decoding none is; in both they add up to the answer, and count its tokens and passes as they come."""
    picture = pipeline.generate(PROMPT).image
    plain = Pipeline(pipeline.model, pipeline.tokenizer)
    pieces: dict[str, list[Piece]] = {"draft": [], "plain": []}
    drafted = pipeline.ask("Describe the image.", picture, stream=pieces["draft"].append)
    alone = plain.ask("Describe the image.", picture, stream=pieces["plain"].append)
    assert "".join(pieces["draft"]) == "".join(pieces["plain"]) == drafted.text == alone.text
    assert not any(piece.drafted for piece in pieces["plain"]) and alone.passes == alone.tokens
    own = sum(not piece.drafted for piece in pieces["draft"])
    assert own <= drafted.passes <= drafted.tokens  # each pass ends with one token of its own
    counts = [(piece.tokens, piece.passes) for piece in pieces["draft"]]
    assert counts == sorted(counts) and counts[-1][0] <= drafted.tokens and counts[-1][1] <= drafted.passes


def test_characters_of_several_tokens_appear_whole() -> None:
    class Bytes:
        def decode(self, ids: list[int]) -> str:
            return bytes(ids).decode(errors="replace")

    stream = TextStream(Bytes(), eos=0)  # type: ignore[arg-type]
    assert [stream.add(token) for token in (*"é!".encode(), 0)] == ["", "é", "!", ""]
    assert stream.count == 4


def test_what_is_not_there_is_told_before_the_model_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperbagel.pipeline.pipeline.load_model", None)
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: no such file"):
        load("scenes", branch="nowhere.safetensors")
    with pytest.raises(CheckpointError, match=r"not a generation branch"):
        load("scenes", branch="scenes/draft")


def test_names_of_the_package_are_imported_when_they_are_used() -> None:
    script = "import sys, hyperbagel; assert 'torch' not in sys.modules; print(hyperbagel.load.__name__)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "load\n"
    for name in hyperbagel.__all__:
        assert getattr(hyperbagel, name) is not None and name in dir(hyperbagel)
    with pytest.raises(AttributeError, match="has no attribute 'pipelin'"):
        hyperbagel.pipelin  # noqa: B018
