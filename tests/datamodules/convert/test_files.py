"""Files are found as people mean them, whatever system they come from, and no name makes a conversion fail."""

import os
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hyperbagel.datamodules.convert import (
    ConversionSummary,
    convert_folder,
    convert_journeydb,
    convert_llava_onevision,
)
from tests.datamodules.convert.datasets import SERIAL, picture, turns, write, write_journeydb, write_jsonl
from tests.datamodules.convert.shards import outline, read_back

PICTURE = picture(0, "PNG", (4, 4))
ALL = replace(SERIAL, max_skipped=1.0)
NFC, NFD = unicodedata.normalize("NFC", "ünïcode é"), unicodedata.normalize("NFD", "ünïcode é")


def pair(folder: Path, name: str, suffix: str = ".png", text: str = ".txt") -> None:
    write(folder / f"{name}{suffix}", PICTURE)
    write(folder / f"{name}{text}", f"about {name}")


def convert(src: Path) -> tuple[set[str], ConversionSummary]:
    """Names of the pictures that were converted, and the counts."""
    out = src.parent / "out"
    summary = convert_folder(str(src), str(out), options=ALL)
    documents = [document for document, _ in read_back(out)]
    assert summary.rows == len(documents) + sum(summary.skipped.values())
    str(summary).encode()
    return {document.meta["file_name"] for document in documents}, summary


def linked(src: Path) -> None:
    pair(src.parent / "disk/deeper", "0")
    (src / "there").symlink_to(src.parent / "disk", target_is_directory=True)


def loop(src: Path) -> None:
    (src / "here").mkdir()
    pair(src / "here", "0")
    (src / "here/again").symlink_to(src, target_is_directory=True)
    (src / "itself").symlink_to(src / "itself")


def linked_twice(src: Path) -> None:
    pair(src / "z", "0")
    (src / "a").symlink_to(src / "z", target_is_directory=True)
    (src / "b").symlink_to(src / "z", target_is_directory=True)


def linked_file(src: Path) -> None:
    pair(src.parent / "disk", "0")
    (src / "0.png").symlink_to(src.parent / "disk/0.png")
    (src / "0.txt").symlink_to(src.parent / "disk/0.txt")


def broken_link(src: Path) -> None:
    (src / "0.png").symlink_to(src.parent / "nowhere.png")
    write(src / "0.txt", "a caption")


def system_files(src: Path) -> None:
    for name in ("._a.png", "._a.txt", ".hidden.png", "__MACOSX/._a.png", ".git/x.png", "@eaDir/a.png/b.png"):
        write(src / name, b"\0\5\26\7")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        write(src / name, b"\0")


def not_a_file(src: Path) -> None:
    os.mkfifo(src / "pipe.png")
    os.mkfifo(src / "pipe.txt")
    (src / "folder.png").mkdir()
    (src / "folder.txt").mkdir()


def other_bytes(src: Path) -> None:
    for ending in (b".png", b".txt"):
        path = os.path.join(os.fsencode(src), b"caf\xe9" + ending)
        Path(os.fsdecode(path)).write_bytes(PICTURE if ending == b".png" else b"a caption")


FOUND: dict[str, tuple[Callable[[Path], object], set[str], dict[str, int]]] = {
    # makes files beside a.png and a.txt; names that are converted besides; rows that are skipped
    "upper case": (lambda src: pair(src, "B", ".PNG", ".TXT"), {"B.PNG"}, {}),
    "upper and lower case": (lambda src: pair(src, "B", ".Png"), {"B.Png"}, {}),
    "another Unicode form": (
        lambda src: (write(src / f"{NFD}.png", PICTURE), write(src / f"{NFC}.txt", "a caption")), {f"{NFD}.png"}, {},
    ),
    "two texts": (lambda src: write(src / "a.TXT", "another"), set(), {"missing_image": 1}),
    "a linked folder": (linked, {"there/deeper/0.png"}, {}),
    "a loop of links": (loop, {"here/0.png"}, {}),
    "links to a folder that is there": (linked_twice, {"z/0.png"}, {}),
    "linked files": (linked_file, {"0.png"}, {}),
    "a link to nothing": (broken_link, set(), {"missing_image": 1}),
    "files of systems": (system_files, set(), {}),
    "pipes and folders": (not_a_file, set(), {}),
    "not UTF-8": (other_bytes, {"caf\\xe9.png"}, {}),
    "spaces": (lambda src: pair(src, " b "), {" b .png"}, {}),
    "dots": (lambda src: pair(src, "b.1.x"), {"b.1.x.png"}, {}),
    "a backslash": (lambda src: pair(src, "b\\c"), set(), {"unsafe_name": 1}),
    "a text in UTF-16": (
        lambda src: (write(src / "b.png", PICTURE), write(src / "b.txt", "text".encode("utf-16"))),
        set(), {"not_utf8": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_a_folder_holds(tmp_path: Path, name: str):
    make, expected, skipped = FOUND[name]
    src = tmp_path / "src"
    src.mkdir()
    pair(src, "a")
    make(src)
    names, summary = convert(src)
    assert names == {"a.png", *expected} and summary.skipped == skipped


def test_what_is_left_out_is_told(tmp_path: Path):
    src = tmp_path / "src"
    pair(src, "a")
    system_files(src)
    loop(src)
    _, summary = convert(src)
    assert summary.notes[0] == "left out 6 hidden and system files or folders, such as ._a.png, ._a.txt, .git"
    assert summary.notes[1] == "passed over 1 links to folders that are there already, such as here/again"


def test_shards_inside_of_the_folder_do_not_belong_to_it(tmp_path: Path):
    write_jsonl(tmp_path / "a.json", [{"conversations": turns("2+2?", "4")}])
    for _ in range(2):
        summary = convert_llava_onevision(str(tmp_path), str(tmp_path / "out"), options=SERIAL)
        assert summary.rows == 1
    assert summary.repeated


NAMED: dict[str, tuple[str, str, bool]] = {
    # file, name in the table, whether it is found
    "Unicode forms": (f"{NFD}.png", f"{NFC}.png", True),
    "Unicode forms the other way": (f"{NFC}/{NFC}.png", f"{NFD}/{NFD}.png", True),
    "case of the ending": ("a.PNG", "a.png", True),
    "case of the ending the other way": ("b/a.jpg", "b/a.JPG", True),
    "a folder around": ("photos/a.png", "a.png", True),
    "spaces of the name": (" a .png", " a .png", True),
    "spaces of the table": ("a.png", "  a.png ", True),
    "hidden but named": (".hidden/a.png", ".hidden/a.png", True),
    "too long": ("a.png", "图" * 200 + ".png", False),
    "a folder": ("a.png/b.png", "a.png", False),
    "of a file": ("a.png", "a.png/b.png", False),
    "another case": ("A.png", "a.png", False),
}


@pytest.mark.parametrize("name", NAMED)
def test_names_in_tables(tmp_path: Path, name: str):
    file, named, found = NAMED[name]
    write(tmp_path / "src" / file, PICTURE)
    write(tmp_path / "src/good.png", PICTURE)
    rows = [{"file_name": picture, "text": "a caption"} for picture in ("good.png", named)]
    write_jsonl(tmp_path / "src/METADATA.JSONL", rows)
    _, summary = convert(tmp_path / "src")
    assert summary.written == 1 + found and summary.skipped == ({} if found else {"missing_image": 1})


def test_of_two_similar_files_none_is_taken(tmp_path: Path):
    for file in ("a.PNG", "a.Png", "b.png"):
        write(tmp_path / "src" / file, PICTURE)
    write(tmp_path / "src/captions.tsv", "file_name\ttext\na.png\twhich?\nb.png\tb\n")
    names, summary = convert(tmp_path / "src")
    assert names == {"b.png"} and summary.skipped == {"missing_image": 1}


def test_a_table_names_files_that_are_not_utf8(tmp_path: Path):
    (tmp_path / "src").mkdir()
    other_bytes(tmp_path / "src")
    (tmp_path / "src/caf\udce9.txt").unlink()
    write(tmp_path / "src/captions.csv", b"file_name,text\ncaf\xe9.png,a cup\n")
    assert convert(tmp_path / "src")[0] == {"caf\\xe9.png"}
    assert outline(read_back(tmp_path / "out")[0][0])[0] == ("a cup", False)


def test_endings_of_annotations_and_archives_in_upper_case(tmp_path: Path):
    src = write_journeydb(tmp_path / "src")
    plain = convert_journeydb(str(src), str(tmp_path / "plain"), options=SERIAL)
    for path in [*src.glob("*.jsonl"), *src.glob("imgs/*")]:
        path.rename(path.with_suffix(path.suffix.upper()))
        write(path.with_name(f"._{path.stem}{path.suffix.upper()}"), b"\0\5\26\7")
    upper = convert_journeydb(str(src), str(tmp_path / "upper"), options=SERIAL)
    assert upper.written == plain.written and read_back(tmp_path / "plain") == read_back(tmp_path / "upper")
