"""The tutorial for own pictures: its commands lead from a folder to a branch of 6 evaluations that is measured."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from safetensors import safe_open

from hyperbagel.cli import main
from hyperbagel.cli.trainer import read_config
from hyperbagel.datamodules.sources import Source, open_source
from hyperbagel.evaluation.reports import read_report
from tests.shrunk import shrunk
from tests.test_documents import DOCUMENTS, shell_commands

ANIMALS = ("duck", "fox", "owl", "crab", "frog", "snail", "whale", "bear", "goat", "moth", "hen", "newt")
STEPS = ("own-data", "own-data-cfg", "own-data-tscd", "own-data-test")


def make_pictures(folder: Path) -> None:
    """Twelve small drawings of different shapes with names, as a person has them."""
    folder.mkdir()
    rows = ["file,caption"]
    for number, animal in enumerate(ANIMALS):
        picture = Image.new("RGBA", (48, 48 if number % 3 else 40), (255, 255, 255, 0))
        ImageDraw.Draw(picture).ellipse((8, 4, 40, 36), fill=(20 * number, 255 - 20 * number, 90, 255))
        picture.save(folder / f"{number:02}.png")
        rows.append(f"{number:02}.png,a green {animal}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")


def test_the_tutorial_leads_to_a_branch_of_6_evaluations(
    nano_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path / "PICTURES")
    commands = [shlex.split(command)[1:] for command in shell_commands(DOCUMENTS["docs/own-data.md"])]
    assert [command[2] for command in commands if command[0] in ("fit", "test")] == list(STEPS)
    for arguments in commands:
        if "own-data" in arguments:  # all later steps go on from what the first leaves
            arguments += ["--model.init_args.model", nano_folder]
        (work := tmp_path / "shrunk").mkdir(exist_ok=True)
        main(shrunk(arguments, work))
    shown = capsys.readouterr().out
    assert "12 of 14 words are spelled in bytes" in shown and "duck, " in shown
    warned = [record.getMessage() for record in caplog.records if "spelled" in record.getMessage()]
    assert any(message.startswith("source 'pictures': ") and "duck" in message for message in warned)
    results = read_report(tmp_path / "runs/own-data/test")["results"]
    rows = results["heldout"]["rows"]
    assert {row: found["nfe"] for row, found in rows.items()} == {"teacher": 4, "nfe6": 6, "naive-6": 12}
    assert all({"fidelity/real", "diversity", "time/seconds_per_image"} <= found.keys() for found in rows.values())
    assert all(caption.startswith("a green ") for caption in results["heldout"]["captions"])
    with safe_open("runs/own-data/nfe6.safetensors", "np") as branch:
        assert '"nfe": 6' in str(branch.metadata())
    assert (tmp_path / "duck.png").is_file()


def keys(source: Source, cache: Path) -> set[str]:
    opened = open_source(source, cache, with_loss=True)
    return {opened.read(index).key for index in range(len(opened))}


def test_what_is_trained_on_and_what_is_held_out_are_the_whole(tmp_path: Path) -> None:
    make_pictures(tmp_path / "PICTURES")
    main(["data", "folder", str(tmp_path / "PICTURES"), str(tmp_path / "shards")])
    data = read_config(["own-data"]).data.init_args
    (train,), (val,), (test,) = data.train, data.val, data.test
    assert val == test and train.shards == val.shards and train.part[1] == val.part[0]
    trained, held_out = (
        keys(Source("any", shards=str(tmp_path / "shards"), part=source.part), tmp_path / "cache")
        for source in (train, val)
    )
    assert not trained & held_out and len(trained | held_out) == 12
    assert 2 <= len(held_out) < len(trained)


def test_missing_shards_are_told(nano_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"hyperbagel fit: .*shards"):
        main(["fit", "--config", "own-data", "--model.init_args.model", nano_folder])
