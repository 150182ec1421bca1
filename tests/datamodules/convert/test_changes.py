"""A data set that changed is converted anew, told so, and never mixed with what was converted before."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyperbagel.datamodules.convert import (
    TooManyBadRowsError,
    convert_folder,
    convert_journeydb,
    convert_llava_onevision,
    convert_seed_data_edit,
)
from hyperbagel.datamodules.convert.annotation_index import AnnotationIndex
from tests.datamodules.convert.datasets import (
    SERIAL,
    llava_row,
    picture,
    write,
    write_archive,
    write_journeydb,
    write_jsonl,
    write_llava_json,
    write_parquet,
    write_seed,
)
from tests.datamodules.convert.shards import contents, read_back


def make_pairs(src: Path) -> Path:
    for number in range(6):
        write(src / f"{number}.png", picture(number, "PNG"))
        write(src / f"{number}.txt", f"picture {number}")
    return src


def make_table(src: Path) -> Path:
    make_pairs(src)
    write(src / "captions.csv", "file_name,text\n" + "".join(f"{n}.png,picture {n}\n" for n in range(6)))
    return src


def make_llava(src: Path) -> Path:
    return write_llava_json(src, [llava_row(number) for number in range(6)]).parent


def make_parquet(src: Path) -> Path:
    return write_parquet(src / "a.parquet", [llava_row(number) for number in range(6)]).parent


def swap(file: str, old: bytes, new: bytes) -> Callable[[Path], object]:
    return lambda src: write(src / file, (src / file).read_bytes().replace(old, new))


def put(file: str, content: bytes | str) -> Callable[[Path], object]:
    return lambda src: write(src / file, content)


def another_archive(src: Path) -> None:
    write_archive(src / "imgs/000.tgz", {f"000/uuid-{number}.jpg": picture(number + 99) for number in range(0, 20, 2)})


def another_archive_of_edits(src: Path) -> None:
    write_archive(src / "real_editing/images/images.tar.gz", OTHER_EDITS)


def another_parquet(src: Path) -> None:
    write_parquet(src / "a.parquet", [llava_row(3)])


def new_pair(src: Path) -> None:
    write(src / "9.png", picture(9, "PNG"))
    write(src / "9.txt", "picture 9")


OTHER_EDITS = {f"images/{kind}{number}.jpg": picture(number + 200) for kind in "st" for number in range(5)}

CHANGES: dict[str, tuple[Callable[[Path], Path], Callable[..., Any], Callable[[Path], object]]] = {
    "a caption": (make_pairs, convert_folder, swap("1.txt", b"picture", b"drawing")),
    "a picture": (make_pairs, convert_folder, put("1.png", picture(9, "PNG"))),
    "a new pair": (make_pairs, convert_folder, new_pair),
    "a row of a table": (make_table, convert_folder, swap("captions.csv", b"picture 3", b"drawing 3")),
    "a picture of a table": (make_table, convert_folder, put("3.png", picture(9, "PNG"))),
    "a row more": (make_table, convert_folder, swap("captions.csv", b"5.png", b"0.png,again\n5.png")),
    "a conversation": (make_llava, convert_llava_onevision, swap("data.json", b"It is 4", b"It was 4")),
    "a picture of a conversation": (make_llava, convert_llava_onevision, put("images/part/3.jpg", picture(9))),
    "a Parquet file": (make_parquet, convert_llava_onevision, another_parquet),
    "an annotation": (
        write_journeydb, convert_journeydb, swap("train_anno_realease_repath.jsonl", b"picture of 2", b"drawing of 2"),
    ),
    "an archive": (write_journeydb, convert_journeydb, another_archive),
    "an unpacked picture": (
        lambda src: write_journeydb(src, archives=False), convert_journeydb, put("imgs/000/uuid-2.jpg", picture(9)),
    ),
    "an edit": (write_seed, convert_seed_data_edit, put("real_editing/images/t1.jpg", picture(9))),
    "an archive of edits": (
        lambda src: write_seed(src, archives=True), convert_seed_data_edit, another_archive_of_edits,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_data_set_is_converted_anew(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture):
    make, convert, change = CHANGES[name]
    src, out = make(tmp_path / "src"), tmp_path / "out"
    before = convert(str(src), str(out), options=SERIAL)
    old = contents(out)
    change(src)
    assert not caplog.records
    after = convert(str(src), str(out), options=SERIAL)
    assert "the data set changed since it was converted" in caplog.text and "converted anew" in caplog.text
    assert after.kept == 0 and not after.repeated and contents(out) != old
    whole = convert(str(src), str(tmp_path / "whole"), options=SERIAL)
    assert contents(out) == contents(tmp_path / "whole")
    assert replace(after, out="") == replace(whole, out="") and before.written


@pytest.mark.parametrize("name", ["a caption", "a row of a table", "a Parquet file", "an archive"])
def test_an_unfinished_conversion_notices_a_change_too(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    make, convert, change = CHANGES[name]
    src, out = make(tmp_path / "src"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("hyperbagel.datamodules.convert.conversion.asdict", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(str(src), str(out), options=SERIAL)
    assert not (out / "conversion.json").exists() and list(out.glob("*.tar"))
    change(src)
    convert(str(src), str(out), options=SERIAL)
    convert(str(src), str(tmp_path / "whole"), options=SERIAL)
    assert contents(out) == contents(tmp_path / "whole")


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_repeated_conversion_says_that_nothing_was_read(tmp_path: Path):
    src = make_pairs(tmp_path / "src")
    write(src / "7.png", b"")
    write(src / "7.txt", "no picture")
    first = convert_folder(str(src), str(tmp_path / "out"), options=SERIAL)
    assert "skipped 1 unreadable_image" in str(first)
    second = convert_folder(str(src), str(tmp_path / "out"), options=SERIAL)
    assert str(second).startswith("nothing was read again: the conversion is complete, 6 of 7 rows in 2 shards")
    assert "1 skipped, see conversion.json" in str(second) and "unreadable" not in str(second)


def test_a_data_set_that_lost_files_does_not_take_their_documents_along(tmp_path: Path):
    src, out = make_pairs(tmp_path / "src"), tmp_path / "out"
    convert_folder(str(src), str(out), options=SERIAL)
    before = contents(out)
    (src / "1.png").unlink()
    with pytest.raises(FileExistsError, match=r"files are gone \(12 files then, 11 now\).*write elsewhere, or remove"):
        convert_folder(str(src), str(out), options=SERIAL)
    assert contents(out) == before


def test_what_made_a_conversion_fail_may_be_removed(tmp_path: Path):
    src, out = make_pairs(tmp_path / "src"), tmp_path / "out"
    for number in range(10, 20):
        write(src / f"{number}.txt", "no picture")
    with pytest.raises(TooManyBadRowsError, match=r"10 of 16 rows are unusable \(10 missing_image\)") as error:
        convert_folder(str(src), str(out), options=SERIAL)
    assert len(str(error.value)) < 300 + len(str(src)) and "\n" not in str(error.value)
    for number in range(10, 20):
        (src / f"{number}.txt").unlink()
    summary = convert_folder(str(src), str(out), options=SERIAL)
    assert (summary.written, summary.skipped, len(read_back(out))) == (6, {}, 6)


def test_a_data_set_that_moved_is_the_same_one(tmp_path: Path):
    src = make_pairs(tmp_path / "src")
    convert_folder(str(src), str(tmp_path / "out"), options=SERIAL)
    shutil.move(src, tmp_path / "elsewhere")
    assert convert_folder(str(tmp_path / "elsewhere"), str(tmp_path / "out"), options=SERIAL).repeated


def test_another_data_set_does_not_replace_the_first(tmp_path: Path):
    convert_folder(str(make_pairs(tmp_path / "src")), str(tmp_path / "out"), options=SERIAL)
    before = contents(tmp_path / "out")
    write(make_pairs(tmp_path / "other") / "1.txt", "another caption")
    with pytest.raises(FileExistsError, match=r"rows was .* src was '.*src', now '.*other'"):
        convert_folder(str(tmp_path / "other"), str(tmp_path / "out"), options=SERIAL)
    assert contents(tmp_path / "out") == before


def test_what_was_unpacked_or_indexed_of_older_files_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    src, out = write_seed(tmp_path / "src", archives=True), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("hyperbagel.datamodules.convert.conversion._convert", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_seed_data_edit(str(src), str(out), options=SERIAL)
    another_archive_of_edits(src)
    convert_seed_data_edit(str(src), str(out), options=SERIAL)
    found = {data for _, images in read_back(out) for data in images.values()}
    assert set(OTHER_EDITS.values()) <= found

    src, out = write_journeydb(tmp_path / "journey"), tmp_path / "out2"
    with monkeypatch.context() as patch:
        patch.setattr(AnnotationIndex, "count_bad", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_journeydb(str(src), str(out), options=SERIAL)
    write_jsonl(src / "train_anno_realease_repath.jsonl", [{"img_path": "000/uuid-0.jpg", "prompt": "p", "Task2": {}}])
    assert convert_journeydb(str(src), str(out), wording="prompt", options=SERIAL).written == 1


@pytest.mark.parametrize("archives", [True, False])
def test_the_older_annotations_of_journeydb_are_refused_with_the_remedy(tmp_path: Path, archives: bool):
    src = write_journeydb(tmp_path / "src", archives=archives)
    (src / "train_anno_realease_repath.jsonl").unlink()
    rows = [{"img_path": f"old/./imgs/{n}.jpg", "prompt": "p", "Task2": {"Caption": "c"}} for n in range(20)]
    write_jsonl(src / "train_anno.jsonl", rows)
    with pytest.raises(ValueError, match=r"'old/imgs/0\.jpg', do not fit .*: use train_anno_realease_repath\.jsonl"):
        convert_journeydb(str(src), str(tmp_path / "out"), options=SERIAL)
