"""What the page does, without the page."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperbagel import Pipeline
from hyperbagel.bagel.images import ImageError, of_uint8
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.cli import main
from hyperbagel.cli.app import launch_settings, load_studio
from hyperbagel.cli.options import App
from hyperbagel.cli.page_columns import Column, Columns, compared, cost, first, speed
from hyperbagel.cli.page_examples import PROMPTS, edits, questions
from hyperbagel.cli.studio import Reply, Studio, read_picture
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION
from hyperbagel.flow.sampler import Sampler
from hyperbagel.pipeline.device import Device, Runtime
from hyperbagel.pipeline.loading import load_model
from hyperbagel.pipeline.painter import Painter
from hyperbagel.pipeline.results import Picture, Piece
from hyperbagel.scenes.vocabulary import tokenizer_folder

NETWORKS = ["teacher", "6 steps", "1 step"]


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
    assert list(studio.networks) == NETWORKS
    assert studio.live == "1 step"
    shutil.copytree(studio_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("branches"))
    bare = load_studio(App(model=str(tmp_path / "bare"), nfe6=str(studio_folder / "branches" / "nfe6.safetensors")))
    assert list(bare.networks) == NETWORKS[:2]
    assert bare.live is None and bare.drafting is None


def test_pictures_come_one_by_one_the_quickest_first_with_what_they_cost(studio: Studio, picture: Path) -> None:
    """Two passes a step for a guided teacher, three where an edit is guided (t > 0.4), one for a branch."""
    drawn = dict(studio.generate("a red circle", NETWORKS, seed=3))
    assert {name: found.nfe for name, found in drawn.items()} == {"1 step": 1, "6 steps": 6, "teacher": 16}
    assert list(drawn) == ["1 step", "6 steps", "teacher"]
    assert all(found.image.size == (64, 64) and found.seconds > 0 for found in drawn.values())
    edited = dict(studio.edit(read_picture(picture), "make it blue", NETWORKS))
    assert [edited[name].nfe for name in NETWORKS] == [22, 6, 1]
    (again,) = dict(studio.generate("a red circle", ["1 step"], seed=3)).values()
    (other,) = dict(studio.generate("a red circle", ["1 step"], seed=4)).values()
    assert again.image.tobytes() == drawn["1 step"].image.tobytes() != other.image.tobytes()


def test_pictures_are_those_of_a_painter_with_the_networks_steps(studio: Studio, picture: Path) -> None:
    """Of the teacher with both guidances, and of a branch with its shift."""
    source = read_picture(picture)
    for name, steps in (("teacher", 8), ("6 steps", 6)):
        network = studio.networks[name]
        model, tokenizer, branch = network.pipeline.model, network.pipeline.tokenizer, network.pipeline._branch
        painters = [
            Painter(model, tokenizer, Sampler(steps, 3.0, guidance), branch)
            for guidance in (PAPER_GENERATION, PAPER_EDITING)
        ]
        with torch.inference_mode():
            (plain,) = painters[0].generate(["a red circle"], [3])
            (edit,) = painters[1].edit([source], ["make it blue"], [3])
        ((_, drawn),) = studio.generate("a red circle ", [name], seed=3)
        ((_, edited),) = studio.edit(source, "make it blue", [name], seed=3)
        assert drawn.image.tobytes() == of_uint8(plain).tobytes()
        assert edited.image.tobytes() == of_uint8(edit).tobytes()


def test_everything_works_in_bfloat16(studio_folder: Path, picture: Path) -> None:
    studio = load_studio(App(model=str(studio_folder), steps=2, device=Runtime(dtype="bfloat16")))
    source = read_picture(picture)
    assert studio.plain.model.dtype == torch.bfloat16
    assert all(drawn.image.size == (64, 64) for _, drawn in studio.generate("a red circle", NETWORKS))
    assert all(edited.image.size == (64, 48) for _, edited in studio.edit(source, "make it blue", NETWORKS))
    assert list(studio.ask(source, "what is this?", max_tokens=3))[-1].tokens <= 3


def test_answers_are_those_of_plain_decoding_and_marked(studio: Studio, picture: Path) -> None:
    """Every pass ends with one token of the model's own, so what is drafted is the rest."""
    replies = list(studio.ask(None, "what is this?", max_tokens=24))
    last = replies[-1]
    assert [reply.tokens for reply in replies] == sorted(reply.tokens for reply in replies)
    assert [len(reply.pieces) for reply in replies[:-1]] == list(range(1, len(replies)))
    assert all(not reply.seconds for reply in replies[:-1]) and last.seconds > 0
    plain = list(studio.ask(None, "what is this?", draft=False, max_tokens=24))[-1]
    assert last.text == plain.text and last.tokens == plain.tokens
    assert plain.passes == plain.tokens >= last.passes
    assert not any(piece.drafted for piece in plain.pieces)
    assert f"{last.passes} passes" in speed(last) and "tokens/s" in speed(last)
    assert list(studio.ask(read_picture(picture), "what is this?", max_tokens=3))[-1].tokens <= 3


def test_what_the_user_can_mend_is_said_without_places(studio: Studio, picture: Path, studio_folder: Path) -> None:
    for empty in (studio.generate("  ", NETWORKS), studio.ask(None, "")):
        with pytest.raises(ValueError, match="the text is empty: say what the picture should show"):
            next(empty)
    with pytest.raises(ValueError, match="no network 'fast'; there are teacher, 6 steps, 1 step"):
        next(studio.generate("a", ["fast"]))
    with pytest.raises(ValueError, match="no network is chosen; there are teacher"):
        next(studio.generate("a", []))
    picture.write_bytes(b"MZ not a picture")
    with pytest.raises(ImageError, match="not a readable picture") as raised:
        read_picture(picture)
    assert "secret-place" not in str(raised.value)
    branch = studio_folder / "branches" / "nfe1.safetensors"
    with pytest.raises(ValueError, match="made for 1 evaluations, give one for 6"):
        load_studio(App(model=str(studio_folder), nfe6=str(branch)))
    with pytest.raises(SystemExit, match=r"hyperbagel app: nowhere"):
        main(["app", "--model", str(studio_folder), "--nfe1", "nowhere"])


def test_only_models_that_can_read_the_words_are_asked_to_think(studio: Studio, studio_folder: Path) -> None:
    assert not studio.thinks
    model, tokenizer = load_model(str(studio_folder), Device())
    tokenizer.knows = ""  # as of tokenizers of whole languages
    thinking = Studio(model, tokenizer, steps=1)
    assert thinking.thinks
    ((_, thoughtless),) = thinking.generate("a red circle", ["teacher"])
    assert not thoughtless.thought


def test_examples_are_of_words_that_the_scenes_model_knows() -> None:
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder())
    said = [*PROMPTS, *(text for _, text in (*edits(), *questions()))]
    assert [tokenizer.unknown_words(text) for text in said] == [[]] * len(said)
    assert all(picture.size == (64, 64) for picture, _ in (*edits(), *questions()))


def test_columns_show_each_picture_as_it_comes_and_compare_them_at_the_end() -> None:
    columns = Columns({name: Column("", f"{name} picture", f"{name} cost") for name in ("teacher", "1 step")})
    quick = Picture(Image.new("RGB", (8, 8)), 1, 0.0097)
    slow = Picture(Image.new("RGB", (8, 8)), 100, 0.716, thought="red it is")
    empty, one, both, compared_ = columns.filling(iter([("1 step", quick), ("teacher", slow)]))
    assert empty == dict.fromkeys(columns.parts) | {"teacher cost": "", "1 step cost": ""}
    assert one["1 step picture"] is quick.image and one["teacher picture"] is None
    assert one["1 step cost"] == "**1 step**: 1 NFE, 9.7 ms, 8x8" == f"**1 step**: {cost(quick)}"
    assert both["teacher cost"] == compared_["teacher cost"] == "**teacher**: 100 NFE, 716 ms, 8x8\n\n> red it is"
    assert compared_["1 step cost"] == "**1 step**: 1 NFE, 9.7 ms, 8x8  \n**73.8 times** as fast as teacher"
    before, after = columns.showing({"1 step": quick}, before=Image.new("RGB", (16, 16)))["1 step picture"]
    assert before.size == after.size == (8, 8)
    assert first(None, ("before.png", "after.png"), "other.png") == "after.png" and first(None, None) is None


def test_answers_with_and_without_draft_are_compared_by_their_speeds() -> None:
    pieces = (Piece("red", True, 1, 1),)
    told = compared(Reply(pieces, 20, 4, 0.01), Reply(pieces, 20, 20, 0.034))
    assert told.startswith("20 tokens in 4 passes (5.00 tokens a pass), 10 ms, 2000 tokens/s")
    assert "34 ms, 588 tokens/s: **3.4 times** as fast with it" in told


def test_a_folder_that_a_branch_was_merged_into_draws_in_its_steps(studio_folder: Path, tmp_path: Path) -> None:
    main(
        f"export model {tmp_path / 'merged'} --model {studio_folder} --text-scale 4 --image-scale 2 "
        f"--branch {studio_folder / 'branches' / 'nfe6.safetensors'}".split()
    )
    studio = load_studio(App(model=str(tmp_path / "merged")))
    assert list(studio.networks) == ["merged"] and isinstance(studio.networks["merged"].pipeline, Pipeline)
    ((_, drawn),) = studio.generate("a red circle", ["merged"])
    assert drawn.nfe == 6


def test_the_page_is_served_to_this_machine_only() -> None:
    settings = launch_settings(App(max_upload_mb=3))
    assert settings["server_name"] == "127.0.0.1" and settings["share"] is False
    assert settings["max_file_size"] == 3 * 1024 * 1024


def test_an_absent_gradio_is_told_before_a_model_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("hyperbagel.cli.app.load_model", None)
    with pytest.raises(SystemExit, match="the page needs gradio: pip install gradio"):
        main(["app"])
