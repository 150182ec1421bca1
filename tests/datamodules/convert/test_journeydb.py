"""Captioned pictures from archives and folders, with a choice of wordings."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hyperbagel.datamodules.convert import FormatError, convert_journeydb
from tests.datamodules.convert.datasets import (
    SERIAL,
    journey_row,
    picture,
    write,
    write_archive,
    write_journeydb,
    write_jsonl,
)
from tests.datamodules.convert.shards import contents, outline, read_back, settings

ALL = replace(SERIAL, max_skipped=1.0)


@pytest.mark.parametrize("archives", [True, False])
@pytest.mark.parametrize("wording", ["caption", "prompt", "either"])
def test_the_text_is_given_and_the_picture_learnt(tmp_path: Path, archives: bool, wording: str):
    write_journeydb(tmp_path / "src", archives=archives)
    summary = convert_journeydb(str(tmp_path / "src"), str(tmp_path / "out"), wording=wording, options=SERIAL)
    assert summary.skipped == ({"empty_text": 4} if wording == "caption" else {})
    documents = read_back(tmp_path / "out")
    assert len(documents) == summary.written == (16 if wording == "caption" else 20)
    texts = set()
    for document, images in documents:
        number = int(document.meta["img_path"].partition("uuid-")[2].removesuffix(".jpg"))
        row = journey_row(number, number % 2)
        both = {"caption": row["Task2"].get("Caption"), "prompt": row["prompt"]}
        assert {key: document.meta[key] for key in both} == both  # whichever is the text
        chosen = document.meta["wording"]
        texts.add(chosen)
        assert outline(document) == [(both[chosen], False), ("image", True)]
        assert images == {"0.jpg": picture(number)}
    assert texts == ({"caption", "prompt"} if wording == "either" else {wording})


def test_archives_and_folders_give_the_same_documents(tmp_path: Path):
    made = []
    for archives in (True, False):
        src = write_journeydb(tmp_path / f"src{archives}", archives=archives)
        convert_journeydb(str(src), str(tmp_path / f"out{archives}"), options=SERIAL)
        made.append(read_back(tmp_path / f"out{archives}"))
    assert sorted(made[0], key=str) == sorted(made[1], key=str)


def test_annotations_in_an_archive_and_options(tmp_path: Path):
    src = write_journeydb(tmp_path / "src")
    plain = convert_journeydb(str(src), str(tmp_path / "plain"), options=SERIAL)
    lines = src / "train_anno_realease_repath.jsonl"
    write_archive(src / "train_anno_realease_repath.jsonl.tgz", {lines.name: lines.read_bytes()})
    write_jsonl(src / "train_anno.jsonl", [{"img_path": "old/./imgs/x.jpg", "prompt": "no archive has this name"}])
    moved = shutil.move(src / "imgs", tmp_path / "elsewhere")
    lines.unlink()
    packed = convert_journeydb(str(src), str(tmp_path / "packed"), images=str(moved), options=SERIAL)
    assert replace(plain, out="", examples={}) == replace(packed, out="", examples={})
    assert read_back(tmp_path / "plain") == read_back(tmp_path / "packed")
    assert not list((tmp_path / "packed").rglob("*.sqlite")) and not list((tmp_path / "packed").rglob("*.jsonl"))


def test_only_some_archives(tmp_path: Path):
    for archives in (True, False):
        src = write_journeydb(tmp_path / f"src{archives}", rows=40, groups=4, archives=archives)
        for group in ("002", "003"):
            path = src / "imgs" / (f"{group}.tgz" if archives else group)
            path.unlink() if archives else shutil.rmtree(path)
        strict = replace(SERIAL, max_skipped=0.2)
        summary = convert_journeydb(str(src), str(tmp_path / f"out{archives}"), wording="prompt", options=strict)
        assert summary.written == 20 and summary.skipped == {"not_downloaded": 20}
        assert len(read_back(tmp_path / f"out{archives}")) == 20


def test_bad_rows_are_counted_by_cause(tmp_path: Path):
    src = tmp_path / "src"
    good = [journey_row(number, 0) for number in range(6)]
    lines = [
        *good,
        good[0],  # twice
        "not json",
        {"prompt": "no name"},
        journey_row(7, 0) | {"img_path": "./000/../../etc/passwd"},
        journey_row(6, 0),  # its picture is not in the archive
    ]
    write_jsonl(src / "valid_anno_repath.jsonl", lines)
    members = {f"000/uuid-{number}.jpg": picture(number) for number in range(4)}
    members["./uuid-5.jpg"] = picture(5)  # without its folder
    members["000/uuid-4.jpg"] = b"no picture"
    members["000/uuid-99.jpg"] = picture(99)  # nobody knows it
    write_archive(src / "imgs/000.tar", members)
    summary = convert_journeydb(str(src), str(tmp_path / "out"), wording="prompt", options=ALL)
    assert summary.written == 5 == len(read_back(tmp_path / "out"))
    assert summary.skipped == {
        "bad_json": 1, "bad_schema": 1, "duplicate_key": 1, "missing_image": 1, "no_annotation": 1,
        "unreadable_image": 1, "unsafe_name": 1,
    }  # fmt: skip
    assert "valid_anno_repath.jsonl, line 8: " in summary.examples["bad_json"][0]
    assert "line 11: no picture '000/uuid-6.jpg'" in summary.examples["missing_image"][0]
    assert "000.tar, member '000/uuid-4.jpg': " in summary.examples["unreadable_image"][0]


@pytest.mark.parametrize("archives", [True, False])
def test_the_first_rows(tmp_path: Path, archives: bool):
    src = write_journeydb(tmp_path / "src", archives=archives)
    summary = convert_journeydb(str(src), str(tmp_path / "out"), wording="prompt", options=replace(SERIAL, limit=13))
    assert summary.rows == summary.written == 13 == len(read_back(tmp_path / "out"))


def test_a_damaged_archive_is_named_and_its_finished_shards_stay(tmp_path: Path):
    src = write_journeydb(tmp_path / "src", rows=40)
    convert_journeydb(str(src), str(tmp_path / "whole"), options=SERIAL)
    archive = src / "imgs/001.tgz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(FormatError, match=r"001\.tgz: .*cut off or damaged after 001/uuid-\d+\.jpg.*download it again"):
        convert_journeydb(str(src), str(tmp_path / "out"), options=SERIAL)
    kept = contents(tmp_path / "out")
    assert any("-000001-" in name for name in kept)


def test_missing_and_wrong_things_are_named(tmp_path: Path):
    src = tmp_path / "src"
    with pytest.raises(FileNotFoundError, match=r"no folder .*src"):
        convert_journeydb(str(src), str(tmp_path / "out"))
    (src / "imgs").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no \*_repath\.jsonl"):
        convert_journeydb(str(src), str(tmp_path / "out"))
    write_jsonl(src / "anno.jsonl", [{"image": "a.jpg", "prompt": "b"}])
    with pytest.raises(FormatError, match=r"anno\.jsonl, line 1: no key 'img_path'; it has image, prompt"):
        convert_journeydb(str(src), str(tmp_path / "out"))
    write_jsonl(src / "b_anno.jsonl", [journey_row(0, 0)])
    with pytest.raises(FormatError, match=r"several annotation files.*set `annotations`"):
        convert_journeydb(str(src), str(tmp_path / "out"))
    write(src / "imgs/000.tgz", "nothing")
    with pytest.raises(FormatError, match=r"000\.tgz: not a tar archive"):
        convert_journeydb(str(src), str(tmp_path / "out"), annotations=str(src / "b_anno.jsonl"), options=SERIAL)


def test_settings_are_kept_with_the_shards(tmp_path: Path):
    src = write_journeydb(tmp_path / "src")
    convert_journeydb(str(src), str(tmp_path / "out"), wording="prompt", options=SERIAL)
    assert settings(tmp_path / "out")["settings"]["wording"] == "prompt"
    with pytest.raises(FileExistsError, match="wording was 'prompt', now 'caption'"):
        convert_journeydb(str(src), str(tmp_path / "out"), options=SERIAL)
