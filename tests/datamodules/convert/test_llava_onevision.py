"""Conversations in Parquet and JSON become documents for understanding; every bad row is counted."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyperbagel.datamodules.convert import FormatError, TooManyBadRowsError, convert_llava_onevision
from hyperbagel.datamodules.documents import ImagePart, TextPart
from tests.datamodules.convert.datasets import (
    SERIAL,
    llava_row,
    picture,
    turns,
    write,
    write_jsonl,
    write_llava_json,
    write_parquet,
)
from tests.datamodules.convert.shards import contents, outline, read_back

ROWS = [llava_row(number) for number in range(11)]


def write_as_parquet(folder: Path) -> Path:
    write_parquet(folder / "clevr(cauldron)" / "train-00000-of-00002.parquet", ROWS[:7])
    write_parquet(folder / "clevr(cauldron)" / "train-00001-of-00002.parquet", ROWS[7:])
    return folder


@pytest.mark.parametrize(
    "make",
    [
        write_as_parquet,
        lambda folder: write_llava_json(folder, ROWS).parent,
        lambda folder: write_llava_json(folder, ROWS, "data.jsonl").parent,
        lambda folder: write_llava_json(folder, ROWS),
    ],
    ids=["parquet", "json", "jsonl", "file"],
)
def test_questions_are_given_and_answers_learnt(tmp_path: Path, make: Callable[[Path], Path]):
    summary = convert_llava_onevision(str(make(tmp_path / "src")), str(tmp_path / "out"), options=SERIAL)
    assert (summary.rows, summary.written, summary.skipped) == (11, 11, {})
    documents = read_back(tmp_path / "out")
    assert len(documents) == 11 and summary.shards == len(list((tmp_path / "out").glob("*.tar"))) >= 3
    for row, (document, images) in zip(ROWS, documents, strict=True):
        assert document.meta == {"id": row["id"], "data_source": row["data_source"]}
        answers = [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"]
        assert [part.text for part in document.parts if isinstance(part, TextPart) and part.loss] == answers
        assert not any(part.loss for part in document.images)
        if row["image"] is None:
            assert not images and outline(document)[0] == ("What is it?", False)
        else:
            assert images == {"0.jpg": row["image"]["bytes"]}
            assert outline(document)[:2] == [("image", False), ("What is it?", False)]


def convert_json(tmp_path: Path, rows: list[Any], **options: Any):
    write_jsonl(tmp_path / "src/data.jsonl", rows)
    return convert_llava_onevision(str(tmp_path / "src"), str(tmp_path / "out"), options=replace(SERIAL, **options))


def test_pictures_stand_where_the_placeholders_are(tmp_path: Path):
    for number in (1, 2):
        write(tmp_path / f"src/{number}.png", picture(number, "PNG"))
    names = ["1.png", "2.png"]
    convert_json(
        tmp_path,
        [
            {"image": names, "conversations": turns("First <image> then <image>\nwhich?", "b")},
            {"image": names, "conversations": turns("<image>", "b", "and <image>", "c")},
            {"image": "1.png", "conversations": turns("no place said", "b")},
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    *turns("q", "a", speakers=("user", "assistant")),
                ]
            },
        ],
    )
    outlines = [outline(document) for document, _ in read_back(tmp_path / "out")]
    image = ("image", False)
    assert outlines[0][:5] == [("First", False), image, ("then", False), image, ("which?", False)]
    assert outlines[1] == [image, ("b", True), ("and", False), image, ("c", True)]
    assert outlines[2] == [image, ("no place said", False), ("b", True)]
    assert outlines[3] == [("Be brief.", False), ("q", False), ("a", True)]
    first, images = read_back(tmp_path / "out")[0]
    shown = [images[part.file] for part in first.parts if isinstance(part, ImagePart)]
    assert shown == [picture(1, "PNG"), picture(2, "PNG")]


BAD = {
    "unknown_speaker": {"conversations": [{"from": "robot", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "bad_turns": {"conversations": turns("q", "a", "q2")},
    "missing_image": {"image": "nowhere.jpg", "conversations": turns("<image>", "a")},
    "image_count": {"image": "good.jpg", "conversations": turns("<image>", "a", "<image>", "b")},
    "unsafe_name": {"image": "../good.jpg", "conversations": turns("<image>", "a")},
    "unreadable_image": {"image": "cut.jpg", "conversations": turns("<image>", "a")},
    "empty_text": {"conversations": turns("q", " ")},
    "bad_schema": {"conversations": [{"from": "human"}]},
    "bad_json": '{"conversations": [',
}


def test_bad_rows_are_counted_by_cause_and_shown(tmp_path: Path):
    write(tmp_path / "src/images/good.jpg", picture(0))
    write(tmp_path / "src/good.jpg", picture(0))
    write(tmp_path / "src/cut.jpg", picture(0)[:-60])
    good = {"image": "good.jpg", "conversations": turns("<image>", "a")}
    more = [
        {"conversations": turns("q", "a")[::-1]},
        {"image": "", "conversations": turns("<image> q", "a")},
        {"image": "/etc/hostname", "conversations": turns("<image>", "a")},
        {"conversations": []},
        "[1, 2]",
    ]
    summary = convert_json(tmp_path, [good, *BAD.values(), *more, good], max_skipped=0.9)
    assert summary.rows == 16 and summary.written == 2 == len(read_back(tmp_path / "out"))
    again = {"bad_turns": 2, "missing_image": 2, "unsafe_name": 2, "bad_schema": 3}
    assert summary.skipped == dict.fromkeys(BAD, 1) | again
    shown = str(summary)
    for number, (cause, part) in enumerate({"unknown_speaker": "'robot'", "bad_turns": "3 turns"}.items(), 2):
        assert summary.examples[cause][0].startswith(f"{tmp_path}/src/data.jsonl, line {number}: ")
        assert part in summary.examples[cause][0] and f"skipped {summary.skipped[cause]} {cause}" in shown
    assert json.loads((tmp_path / "out/conversion.json").read_text())["skipped"] == summary.skipped


def test_a_placeholder_without_a_picture_in_parquet(tmp_path: Path):
    rows = [llava_row(0), llava_row(1) | {"image": None}, llava_row(3) | {"image": {"bytes": b"", "path": None}}]
    write_parquet(tmp_path / "src/a.parquet", rows)
    summary = convert_llava_onevision(
        str(tmp_path / "src"), str(tmp_path / "out"), options=replace(SERIAL, max_skipped=1)
    )
    assert summary.written == 1 and summary.skipped == {"missing_image": 1, "unreadable_image": 1}
    assert "a.parquet, row 1: " in summary.examples["missing_image"][0]


def test_too_many_bad_rows_stop_the_conversion(tmp_path: Path):
    rows = [{"conversations": turns("q", "a")}] + [BAD["missing_image"]] * 3
    with pytest.raises(TooManyBadRowsError, match=r"3 of 4 rows.*3 missing_image.*nowhere\.jpg.*raise max_skipped"):
        convert_json(tmp_path, rows)
    assert convert_json(tmp_path, rows, max_skipped=0.8).written == 1  # continues, and accepts it


@pytest.mark.parametrize("limit", [1, 5, 8, 100])
def test_the_first_rows(tmp_path: Path, limit: int):
    src = write_as_parquet(tmp_path / "src")
    convert_llava_onevision(str(src), str(tmp_path / "all"), options=SERIAL)
    summary = convert_llava_onevision(str(src), str(tmp_path / "some"), options=replace(SERIAL, limit=limit))
    assert summary.written == min(limit, 11)
    assert read_back(tmp_path / "some") == read_back(tmp_path / "all")[:limit]


@pytest.mark.parametrize(
    "file,content,message",
    [
        ("a.json", '[{"conversations": []}, {"a": "]', r"a\.json, item 1: .*cut off"),
        ("a.json", '[{"conversations": []}, 5]', r"a\.json, item 1: .*something else"),
        ("a.json", '[5, {"conversations": []}]', r"a\.json, item 0: .*no object"),
        ("a.json", '{"conversations"', r"a\.json, line 1: not readable as JSON"),
        ("a.json", "conversations", r"a\.json: needs a JSON list"),
        ("a.json", "", r"a\.json is empty"),
        ("a.json", "[]", r"a\.json has no rows"),
        ("a.jsonl", '{"messages": [], "id": 1}', r"a\.jsonl, line 1: no key 'conversations'; it has messages, id"),
        ("a.parquet", "PAR1 or not", r"a\.parquet: not a readable Parquet file"),
    ],
)
def test_wrong_formats_are_named(tmp_path: Path, file: str, content: str, message: str):
    write(tmp_path / "src" / file, content)
    with pytest.raises(FormatError, match=message):
        convert_llava_onevision(str(tmp_path / "src"), str(tmp_path / "out"), options=SERIAL)
    assert not (tmp_path / "out").exists()


def test_missing_things_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no .*/src; give a folder"):
        convert_llava_onevision(str(tmp_path / "src"), str(tmp_path / "out"))
    (tmp_path / "src").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \*\.parquet, \*\.json"):
        convert_llava_onevision(str(tmp_path / "src"), str(tmp_path / "out"))


def test_damaged_parquet_pages_are_named(tmp_path: Path):
    path = write_parquet(tmp_path / "src/a.parquet", ROWS)
    data = bytearray(path.read_bytes())
    data[100:2000] = bytes(1900)
    path.write_bytes(data)
    with pytest.raises((FormatError, TooManyBadRowsError), match=r"a\.parquet, row"):
        convert_llava_onevision(str(path), str(tmp_path / "out"), options=SERIAL)


def test_json_of_any_layout_is_cut_at_the_items(tmp_path: Path):
    """Brackets, quotes and escapes in texts do not count; neither do spaces and nesting around the items."""
    texts = ['a ] } "quoted" \\', "{[", "\\\\", "图 ]", '\\" ,{', "tab\t\nline"]
    rows = [{"conversations": turns("q", text), "extra": [[{"b": [text]}]]} for text in texts]
    out = []
    for number, dump in enumerate([json.dumps(rows), json.dumps(rows, indent=2, ensure_ascii=False)]):
        write(tmp_path / f"src{number}/a.json", f"\ufeff \n {dump} \n")
        options = replace(SERIAL, shard_size=2)
        convert_llava_onevision(str(tmp_path / f"src{number}"), str(tmp_path / f"out{number}"), options=options)
        out.append([outline(document)[1][0] for document, _ in read_back(tmp_path / f"out{number}")])
        assert len([name for name in contents(tmp_path / f"out{number}") if name.endswith(".tar")]) == 3
    assert out == [[text.strip() for text in texts]] * 2
