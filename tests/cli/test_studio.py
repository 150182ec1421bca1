"""What the page does, without the page."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperbagel.bagel.images import ImageError
from hyperbagel.cli import main
from hyperbagel.cli.app import launch_settings, load_studio
from hyperbagel.cli.options import App
from hyperbagel.cli.studio import Origin, Reply, Studio, load_network
from hyperbagel.decoding.statistics import SpeculationStatistics
from hyperbagel.draft.checkpoint import load_draft
from hyperbagel.pipeline.answers import TextStream
from hyperbagel.pipeline.device import Device
from hyperbagel.pipeline.loading import load_model


@pytest.fixture(scope="module")
def studio(studio_folder: Path) -> Studio:
    return load_studio(App(model=str(studio_folder), steps=8))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "secret-place" / "red.png"
    path.parent.mkdir()
    Image.new("RGB", (64, 48), "red").save(path)
    return path


def test_files_of_the_usual_names_make_the_networks(studio: Studio, studio_folder: Path, tmp_path: Path) -> None:
    assert list(studio.networks) == ["teacher", "6 NFE", "1 NFE"]
    assert studio.live == "1 NFE"
    shutil.copytree(studio_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("branches"))
    bare = load_studio(App(model=str(tmp_path / "bare"), nfe6=str(studio_folder / "branches" / "nfe6.safetensors")))
    assert list(bare.networks) == ["teacher", "6 NFE"]
    assert bare.live is None


@pytest.mark.parametrize(("network", "nfe", "editing"), [("teacher", 16, 22), ("6 NFE", 6, 6), ("1 NFE", 1, 1)])
def test_pictures_come_with_what_they_cost(studio: Studio, picture: Path, network: str, nfe: int, editing: int) -> None:
    """Two passes a step for a guided teacher, three where an edit is guided (t > 0.4), one for a branch."""
    drawn = studio.generate("a red circle", network, seed=3)
    assert (drawn.nfe, drawn.picture.size) == (nfe, (64, 64))
    assert drawn.milliseconds > 0
    assert f"{nfe} NFE" in drawn.caption
    assert studio.generate("a red circle", network, seed=3).picture.tobytes() == drawn.picture.tobytes()
    assert studio.generate("a red circle", network, seed=4).picture.tobytes() != drawn.picture.tobytes()
    edited = studio.edit(picture, "make it blue", network)
    assert edited.nfe == editing


def test_everything_works_in_bfloat16(studio_folder: Path, picture: Path) -> None:
    studio = load_studio(App(model=str(studio_folder), steps=2, device=Device(dtype="bfloat16")))
    assert studio.model.dtype == torch.bfloat16
    for network in studio.networks:
        assert studio.generate("a red circle", network).picture.size == (64, 64)
        assert studio.edit(picture, "make it blue", network).picture.size == (64, 48)
    assert list(studio.ask(picture, "what is this?", max_tokens=3))[-1].tokens <= 3


def test_answers_are_those_of_plain_decoding_and_marked(studio: Studio, studio_folder: Path, picture: Path) -> None:
    """Every pass ends with one token of the model's own, so what is drafted is the rest."""
    bagel, tokenizer = load_model(str(studio_folder), Device())
    draft = load_draft(studio_folder / "branches" / "draft.safetensors", bagel)
    replies = list(Studio(bagel, tokenizer, draft=draft).ask(None, "what is this?", max_tokens=24))
    last = replies[-1]
    assert isinstance(last, Reply)
    assert [reply.tokens for reply in replies] == list(range(1, last.tokens + 1))
    plain = list(Studio(bagel, tokenizer).ask(None, "what is this?", max_tokens=24))[-1]
    assert last.text == plain.text
    assert plain.passes == plain.tokens
    assert not any(piece.drafted for piece in plain.pieces)
    assert f"{last.passes} passes" in last.caption
    assert list(studio.ask(picture, "what is this?", max_tokens=3))[-1].tokens <= 3


def test_the_draft_is_marked_where_it_was_accepted(studio_folder: Path) -> None:
    """A draft that is always right: all but each pass's last token are its own."""
    statistics = SpeculationStatistics()
    origin, marks = Origin(statistics), []
    for emitted, accepted in ((3, 2), (1, 0), (4, 3), (2, 2)):
        statistics.add(emitted, accepted, 6)
        marks += [origin.drafted() for _ in range(emitted)]
    assert marks == [True, True, False, False, True, True, True, False, True, True]


def test_what_the_user_can_mend_is_said_without_places(studio: Studio, picture: Path, studio_folder: Path) -> None:
    with pytest.raises(ValueError, match="say what the picture shall show"):
        studio.generate("  ", "teacher")
    with pytest.raises(ValueError, match="no network 'fast'; there are teacher, 6 NFE, 1 NFE"):
        studio.generate("a", "fast")
    with pytest.raises(ValueError, match="give a picture to edit"):
        studio.edit(None, "remove it", "teacher")
    with pytest.raises(ValueError, match="ask something"):
        next(studio.ask(None, ""))
    picture.write_bytes(b"MZ not a picture")
    with pytest.raises(ImageError, match="not a readable picture") as raised:
        studio.edit(picture, "remove it", "teacher")
    assert "secret-place" not in str(raised.value)
    with pytest.raises(ValueError, match="made for 1 evaluations, give one for 6"):
        load_network(studio_folder / "branches" / "nfe1.safetensors", studio.model, 6)


def test_characters_of_several_tokens_appear_whole() -> None:
    class Bytes:
        def decode(self, ids: list[int]) -> str:
            return bytes(ids).decode(errors="replace")

    stream = TextStream(Bytes(), eos=0)  # type: ignore[arg-type]
    assert [stream.add(token) for token in (*"é!".encode(), 0)] == ["", "é", "!", ""]
    assert stream.count == 4


def test_the_page_is_served_to_this_machine_only(studio_folder: Path) -> None:
    settings = launch_settings(replace(App(), max_upload_mb=3))
    assert settings["server_name"] == "127.0.0.1"
    assert settings["share"] is False
    assert settings["max_file_size"] == 3 * 1024 * 1024
    with pytest.raises(SystemExit, match=r"hyperbagel app: nowhere"):
        main(["app", "--model", str(studio_folder), "--nfe1", "nowhere"])
