"""Pictures of data sets: found by their names, known by their content, and named in messages."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from hyperbagel.datamodules.convert import convert_folder
from tests.datamodules.convert.datasets import SERIAL, picture, write, write_jsonl
from tests.datamodules.convert.shards import read_back


@pytest.mark.parametrize(
    ("name", "kind", "member"),
    [
        ("a.jfif", "JPEG", "0.jpg"),
        ("a.JPE", "JPEG", "0.jpg"),
        ("a.avif", "AVIF", "0.avif"),
        ("a.jpg", "AVIF", "0.avif"),
        ("a.png", "WEBP", "0.webp"),
        ("a.pgm", "PPM", "0.ppm"),
        ("a.TIFF", "TIFF", "0.tiff"),
        ("a.mpo", "MPO", "0.jpg"),
    ],
)
def test_pictures_are_known_by_their_content(tmp_path: Path, name: str, kind: str, member: str):
    data = picture(0, kind)
    write(tmp_path / "in" / name, data)
    write(tmp_path / "in" / "a.txt", "red")
    convert_folder(str(tmp_path / "in"), str(tmp_path / "out"), options=SERIAL)
    ((_, images),) = read_back(tmp_path / "out")
    assert images == {member: data}


@pytest.mark.parametrize("name", ["b.heic", "b.HEIF", "b.jxl", "b.jp2", "b.svg", "b.cr2"])
def test_formats_that_are_not_read_are_named(tmp_path: Path, name: str):
    write(tmp_path / "in" / "a.png", picture(0, "PNG"))
    write(tmp_path / "in" / "a.txt", "red")
    write(tmp_path / "in" / name, b"whatever it holds")
    write(tmp_path / "in" / "b.txt", "green")
    summary = convert_folder(str(tmp_path / "in"), str(tmp_path / "out"), options=SERIAL)
    (example,) = summary.examples["unreadable_image"]
    assert summary.skipped == {"unreadable_image": 1}
    assert example.endswith(f"b.txt: {name} is of a format that is not read here; convert it to PNG or JPEG")


def scan() -> bytes:
    buffer = io.BytesIO()
    Image.new("F", (4, 4), 0.5).save(buffer, "TIFF")
    return buffer.getvalue()


UNREADABLE = {
    "empty": b"",
    "page": b"<html>",
    "zeros": bytes(999),
    "cut PNG": picture(0, "PNG")[:300],
    "cut AVIF": picture(0, "AVIF")[:100],
    "floats": scan(),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_messages_name_the_picture_and_are_the_same_in_every_run(tmp_path: Path, kind: str):
    write(tmp_path / "in" / "good.png", picture(0, "PNG"))
    write(tmp_path / "in" / "bad.png", UNREADABLE[kind])
    write_jsonl(tmp_path / "in" / "metadata.jsonl", [{"file_name": f"{n}.png", "text": n} for n in ("good", "bad")])
    notes = []
    for run in ("1", "2"):
        summary = convert_folder(str(tmp_path / "in"), str(tmp_path / run), options=SERIAL)
        (example,) = summary.examples["unreadable_image"]
        assert "line 2: `file_name` 'bad.png': not a readable picture: " in example
        notes.append(json.loads((tmp_path / run / "conversion.json").read_text()))
        assert " at 0x" not in example and len(example) - len(str(tmp_path)) <= 300
    assert notes[0] == notes[1]
