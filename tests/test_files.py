"""Outputs are whole or absent, and places that cannot be written to are refused before work is spent."""

import json
import os
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hyperbagel.bagel.branch_checkpoint import BranchInfo, average_branches, base_hash, save_branch
from hyperbagel.bagel.tensors import write_tensors
from hyperbagel.callbacks.export import write_model
from hyperbagel.callbacks.safeguard import WholeCheckpointIO
from hyperbagel.datamodules.convert.annotation_index import AnnotationIndex
from hyperbagel.datamodules.convert.reports import ShardReport
from hyperbagel.datamodules.inspect import inspect_shards
from hyperbagel.datamodules.scenes import write_scenes
from hyperbagel.datamodules.writer import ShardWriter
from hyperbagel.draft.vocabulary import write_vocabulary
from hyperbagel.evaluation.gedit.journal import Journal
from hyperbagel.evaluation.reports import write_report
from hyperbagel.files import (
    WriteError,
    check_file,
    check_folder,
    check_picture,
    naming,
    whole_file,
    whole_folder,
    write_bytes,
    write_json,
    write_picture,
)
from hyperbagel.scenes.vocabulary import tokenizer_folder
from tests.nano import nano_bagel

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
NUMBERS = {"weight": torch.randn(4096, generator=torch.Generator().manual_seed(0))}


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file grows beyond `room` bytes: writes fail as on a full disk, whoever writes, with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def branch(path: Path) -> None:
    model = nano_bagel()
    save_branch(model.generation, BranchInfo("tscd", 6, base_hash(model)), path)


def average(path: Path) -> None:
    source = path.parent.parent / "source.safetensors"
    if not source.exists():
        with full_disk(resource.RLIM_INFINITY):
            branch(source)
    average_branches({str(source): 1}, path)


def shard(path: Path) -> None:
    picture = path.parent.parent / "picture.png"
    if not picture.exists():
        with full_disk(resource.RLIM_INFINITY):
            NOISE.save(picture)
    document = {"segments": [{"type": "text", "text": "noise"}, {"type": "image", "file": "0.png", "loss": True}]}
    path.unlink(missing_ok=True)  # a writer refuses to replace one
    with ShardWriter(f"{path.parent}/{{}}.tar") as writer:
        writer.write("a", document, {"0.png": picture.read_bytes()})


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "bytes": ("any", lambda path: write_bytes(path, bytes(10_000))),
    "JSON": ("a.json", lambda path: write_json(path, list(range(10_000)))),
    "PNG": ("a.png", lambda path: write_picture(path, NOISE)),
    "BMP": ("a.bmp", lambda path: write_picture(path, NOISE)),
    "JPEG": ("a.jpg", lambda path: write_picture(path, NOISE)),
    "tensors": ("a.safetensors", lambda path: write_tensors(NUMBERS, path)),
    "branch": ("b.safetensors", branch),
    "average": ("c.safetensors", average),
    "checkpoint": ("last.ckpt", lambda path: WholeCheckpointIO().save_checkpoint(dict(NUMBERS), path)),
    "vocabulary": ("ids.json", lambda path: write_vocabulary(range(10_000), path)),
    "run report": (
        "report.json",
        lambda path: write_report({"stage": "x" * 9000, "student_step": 1, "results": {}}, path.parent),
    ),
    "shard report": ("r.json", lambda path: ShardReport(examples={"cause": ["x" * 9000]}).save(path)),
    "annotations": ("index", lambda path: (path.unlink(missing_ok=True), AnnotationIndex(path).build([], str))),
}


@pytest.mark.parametrize("room", [0, 2000])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(name: str, room: int, tmp_path: Path) -> None:
    file, write = WRITERS[name]
    path = tmp_path / "out" / file
    path.parent.mkdir()
    path.write_bytes(b"old")
    if name == "average":
        branch(tmp_path / "source.safetensors")
    with full_disk(room), pytest.raises(WriteError, match=rf"{file}: not written: .*; (make room|or write)") as error:
        write(path)
    assert "\n" not in str(error.value)
    assert [p.name for p in path.parent.iterdir()] == ([] if name == "annotations" else [file])
    assert name == "annotations" or path.read_bytes() == b"old"
    write(path)  # with room it succeeds
    assert path.stat().st_size > 2000 and not list(path.parent.glob("*.tmp*"))


@pytest.mark.parametrize("room", [0, 2000, 12_000])
def test_a_full_disk_leaves_no_half_shard(room: int, tmp_path: Path) -> None:
    path = tmp_path / "out" / "0.tar"
    with full_disk(room), pytest.raises(WriteError, match=r"0\.tar: not written"):
        shard(path)
    assert list(path.parent.iterdir()) == []
    shard(path)
    assert [p.name for p in path.parent.iterdir()] == ["0.tar"]


def test_a_full_disk_leaves_whole_scenes_only(tmp_path: Path) -> None:
    with full_disk(20_000), pytest.raises(WriteError, match=r"train-000000\.tar: not written"):
        write_scenes(tmp_path, size=100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_the_old_model(existing: bool, tmp_path: Path) -> None:
    folder, model = tmp_path / "model", nano_bagel()
    if existing:
        write_model(model, str(tokenizer_folder()), folder, torch.float32)
    before = {path.name: path.read_bytes() for path in folder.iterdir()} if existing else {}
    with full_disk(100_000), pytest.raises(WriteError, match=r"ema\.safetensors: not written"):
        write_model(nano_bagel(seed=1), str(tokenizer_folder()), folder, torch.float32)
    assert ({path.name: path.read_bytes() for path in folder.iterdir()} if existing else {}) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"] * existing


def test_a_folder_that_was_being_replaced_when_the_process_was_killed_is_found_again(tmp_path: Path) -> None:
    (tmp_path / "model.old").mkdir()
    (tmp_path / "model.old" / "weights").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "model"):
        raise RuntimeError
    assert (tmp_path / "model" / "weights").read_text() == "old"


def test_an_empty_folder_is_filled_and_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with whole_folder(".") as partial:
        (partial / "file").write_text("content")
    assert os.listdir() == ["file"]  # asked of the folder that this process is in


def test_a_stopped_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_writers_of_one_file_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a", shared=True) as first:
        first.write_text("first")
        with whole_file(tmp_path / "a", shared=True) as second:
            second.write_text("second")
    assert (tmp_path / "a").read_text() == "first" and len(list(tmp_path.iterdir())) == 1


def test_a_journal_on_a_full_disk_names_its_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "verdicts.jsonl", {"model": "x" * 3000})
    with full_disk(1000), pytest.raises(WriteError, match=r"verdicts\.jsonl: not written"), journal:
        pass


def test_errors_about_other_files_keep_their_own_words(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source"), naming(tmp_path / "a"):
        (tmp_path / "source").read_text()
    with pytest.raises(sqlite3.OperationalError), naming(tmp_path / "a"):
        raise sqlite3.OperationalError("no such table")


def test_half_characters_are_escaped(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "caf\udce9"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "caf\udce9"}


# Places


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("picture", r"picture: pictures cannot be written as a name without ending; use \.png, \.jpg"),
        ("picture.pngg", r"cannot be written as \.pngg; use \.png"),
        ("picture.PSD", r"cannot be written as \.psd.*; use \.png"),  # is only read
        ("picture.xbm", r"cannot be written as \.xbm \(.*\); use \.png"),  # has no colours
        ("picture.png.", r"cannot be written as"),
        ("folder", r"folder: is a folder; name a file in it"),
        ("folder.png", r"folder\.png: is a folder"),
        ("file/picture.png", r"not written: Not a directory|not written: File exists"),
        ("/proc/nowhere/picture.png", r"/proc/nowhere/picture\.png: not written: No such file or directory"),
        ("a" * 300 + ".png", r"not written: File name too long"),
        ("", r"is a folder"),
    ],
)
def test_names_of_pictures_that_cannot_be_written(name: str, message: str, tmp_path: Path) -> None:
    for folder in ("folder", "folder.png"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises((WriteError, ValueError), match=message) as error:
        check_picture(tmp_path / name)
    assert "\n" not in str(error.value) and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.jpeg", "a.webp", "a.bmp", "a.tif", "new/folders/a.gif"])
def test_names_of_pictures_that_can_be_written_leave_no_trace(name: str, tmp_path: Path) -> None:
    check_picture(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    write_picture(tmp_path / name, NOISE)
    with Image.open(tmp_path / name) as picture:
        assert picture.size == NOISE.size


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_places_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for check in (check_file, check_folder):
        with pytest.raises(WriteError, match="Permission denied"):
            check(tmp_path / "new" / "a")


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file: is a file; name a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(WriteError, match="No such file or directory"):
        check_folder("/proc/nowhere")
    check_folder(tmp_path / "new")
    check_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_contact_sheet_is_refused_before_shards_are_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be written as \.pngg"):
        inspect_shards("no-shards.tar", tmp_path / "sheet.pngg")
