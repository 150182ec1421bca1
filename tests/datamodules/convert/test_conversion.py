"""Stopping, continuing and parallel work leave no trace in the result; finished shards are not written again."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import CLI

from hyperbagel.datamodules.convert import (
    ConvertOptions,
    TooManyBadRowsError,
    convert_folder,
    convert_journeydb,
    convert_llava_onevision,
    convert_seed_data_edit,
)
from hyperbagel.datamodules.convert.llava_onevision import Conversations
from hyperbagel.datamodules.convert.pictures import Composition
from tests.datamodules.convert.datasets import (
    SERIAL,
    journey_row,
    llava_row,
    picture,
    turns,
    write,
    write_journeydb,
    write_jsonl,
    write_parquet,
    write_seed,
)
from tests.datamodules.convert.shards import contents, read_back

Convert = Callable[..., Any]


def make_llava(folder: Path) -> Path:
    rows = [llava_row(number) for number in range(30)]
    rows[7]["conversations"] = turns("q", "a", "no answer")
    write_parquet(folder / "a/train-00000-of-00001.parquet", rows)
    return folder


def make_journeydb(folder: Path) -> Path:
    """Several shards for each archive, one archive that nobody downloaded."""
    write_journeydb(folder, rows=30)
    lines = folder / "train_anno_realease_repath.jsonl"
    write_jsonl(lines, [*lines.read_text().splitlines(), "{", journey_row(50, 0), journey_row(51, 9)])
    return folder


DATASETS: dict[str, tuple[Callable[[Path], Path], Convert]] = {
    "llava": (make_llava, convert_llava_onevision),
    "journeydb": (make_journeydb, convert_journeydb),
    "seed": (lambda folder: write_seed(folder, archives=True), convert_seed_data_edit),
}


@pytest.fixture(params=DATASETS)
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Convert]:
    make, convert = DATASETS[request.param]
    return str(make(tmp_path / "src")), convert


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the conversion stop after a number of pictures, as Ctrl-C does."""
    draw = Composition.image

    def after(pictures: int) -> None:
        left = [pictures]

        def image(self: Composition, *args: Any, **options: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            draw(self, *args, **options)

        monkeypatch.setattr(Composition, "image", image)

    return after


def test_an_interrupted_conversion_continues(dataset: tuple[str, Convert], tmp_path: Path, interrupt: Callable):
    src, convert = dataset
    whole = convert(src, str(tmp_path / "whole"), options=SERIAL)
    out = tmp_path / "out"
    kept: dict[str, tuple[int, int]] = {}
    # Just more pictures than the largest shard has, or no run would get further than the last.
    pictures = 15 if convert is convert_seed_data_edit else 5
    summary, interruptions = None, 0
    while summary is None:
        interrupt(pictures)
        try:
            summary = convert(src, str(out), options=SERIAL)
        except KeyboardInterrupt:
            interruptions += 1
            assert interruptions < 20 and not (out / "conversion.json").exists()
            shards = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in out.glob("*.tar")}
            assert shards.items() > kept.items()  # the same ones, and at least one more
            kept = shards
    assert interruptions and replace(summary, out="", kept=0) == replace(whole, out="", kept=0)
    assert contents(out) == contents(tmp_path / "whole")
    assert summary.kept == len(kept)
    for name, identity in kept.items():
        assert ((out / name).stat().st_mtime_ns, (out / name).stat().st_ino) == identity


def test_processes_make_no_difference(dataset: tuple[str, Convert], tmp_path: Path):
    src, convert = dataset
    serial = convert(src, str(tmp_path / "serial"), options=SERIAL)
    parallel = convert(src, str(tmp_path / "parallel"), options=replace(SERIAL, workers=2))
    assert replace(serial, out="") == replace(parallel, out="")
    assert contents(tmp_path / "serial") == contents(tmp_path / "parallel")
    assert len(read_back(tmp_path / "parallel")) == parallel.written


SCRIPT = """
import sys, time
from hyperbagel.datamodules.convert import ConvertOptions, convert_llava_onevision
if __name__ == "__main__":
    options = ConvertOptions(shard_size=20, workers=int(sys.argv[3]))
    convert_llava_onevision(sys.argv[1], sys.argv[2], options=options)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_conversion_continues(tmp_path: Path, workers: int):
    rows = [llava_row(number) for number in range(400)]
    src = write_parquet(tmp_path / "src/a.parquet", rows, group=50)
    options = ConvertOptions(shard_size=20, workers=1)
    convert_llava_onevision(str(src), str(tmp_path / "whole"), options=options)
    out = tmp_path / "out"
    script = write(tmp_path / "convert.py", SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, src, out, str(workers)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.tar"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    while _session_alive(process.pid) and time.monotonic() < deadline:  # workers leave with their parent
        time.sleep(0.02)
    assert not _session_alive(process.pid)
    kept = {path.name: path.stat().st_ino for path in out.glob("*.tar")}
    assert 3 <= len(kept) < 20
    summary = convert_llava_onevision(str(src), str(out), options=options)
    assert summary.kept >= len(kept) and summary.written == 400
    assert contents(out) == contents(tmp_path / "whole")
    assert all((out / name).stat().st_ino == inode for name, inode in kept.items())


def _session_alive(session: int) -> bool:
    """Whether processes of a session are left, its members being started by this test only."""
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_shard_complete_but_not_moved_is_only_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The moment between report and move is the only one at which a finished shard is not in its place."""
    src = str(make_llava(tmp_path / "src"))
    convert_llava_onevision(src, str(tmp_path / "whole"), options=SERIAL)
    out = tmp_path / "out"
    moved = os.replace

    def stop(source: Path, target: Path) -> None:
        if Path(target).parent == out and Path(target).name.endswith("000002.tar"):
            raise KeyboardInterrupt
        moved(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        convert_llava_onevision(src, str(out), options=SERIAL)
    monkeypatch.undo()
    inode = next((out / ".conversion").glob("*.tar")).stat().st_ino
    assert convert_llava_onevision(src, str(out), options=SERIAL).kept == 3
    assert (out / "llava-onevision-000002.tar").stat().st_ino == inode
    assert contents(out) == contents(tmp_path / "whole")


def test_a_complete_conversion_has_nothing_left_to_do(
    dataset: tuple[str, Convert], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    src, convert = dataset
    first = convert(src, str(tmp_path / "out"), options=SERIAL)
    before = contents(tmp_path / "out")
    monkeypatch.setattr(Composition, "image", None)  # would fail
    second = convert(src, str(tmp_path / "out"), options=SERIAL)
    assert replace(second, kept=0) == first and second.kept == second.shards
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / sorted(before)[-1]).unlink()
    monkeypatch.undo()
    convert(src, str(tmp_path / "out"), options=SERIAL)  # a shard that was deleted is made again
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    "change,message",
    [
        ({"shard_size": 5}, "shard_size was 4, now 5"),
        ({"limit": 8}, "limit was None, now 8"),
        ({"resume": False}, "continue it with resume, or write elsewhere"),
    ],
)
def test_another_conversion_is_not_mixed_in(tmp_path: Path, change: Mapping[str, Any], message: str):
    src = str(make_llava(tmp_path / "src"))
    convert_llava_onevision(src, str(tmp_path / "out"), options=SERIAL)
    with pytest.raises(FileExistsError, match=message):
        convert_llava_onevision(src, str(tmp_path / "out"), options=replace(SERIAL, **change))
    other = str(write_parquet(tmp_path / "other/b.parquet", [llava_row(0)]).parent)
    with pytest.raises(FileExistsError, match=r"rows was .* `rows` stands for the data set's files"):
        convert_llava_onevision(other, str(tmp_path / "out"), options=SERIAL)


@pytest.mark.parametrize("convert", [convert_llava_onevision, convert_journeydb])
def test_shards_of_others_are_not_touched(tmp_path: Path, convert: Convert):
    make = make_llava if convert is convert_llava_onevision else make_journeydb
    src = str(make(tmp_path / "src"))
    write(tmp_path / "out/train-000000.tar", b"precious")
    with pytest.raises(FileExistsError, match=r"train-000000\.tar exists; write to a folder without shards"):
        convert(src, str(tmp_path / "out"), options=SERIAL)
    assert contents(tmp_path / "out") == {"train-000000.tar": b"precious"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train-000000.tar"]


def test_shards_without_one_good_row_are_left_out(tmp_path: Path):
    good, bad = {"conversations": turns("q", "a")}, {"conversations": turns("q")}
    write_jsonl(tmp_path / "src/a.jsonl", [*[good] * 4, *[bad] * 4, *[good] * 2])
    summary = convert_llava_onevision(str(tmp_path / "src"), str(tmp_path / "out"), options=SERIAL)
    assert [name for name in contents(tmp_path / "out") if name.endswith(".tar")] == [
        "llava-onevision-000000.tar",
        "llava-onevision-000002.tar",
    ]
    assert (summary.shards, summary.written, summary.skipped) == (2, 6, {"bad_turns": 4})
    write_jsonl(tmp_path / "bad/a.jsonl", [bad])
    with pytest.raises(TooManyBadRowsError, match="not one row could be converted"):
        options = replace(SERIAL, max_skipped=1)
        convert_llava_onevision(str(tmp_path / "bad"), str(tmp_path / "nothing"), options=options)


def test_a_hopeless_conversion_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    converted = []
    compose = Conversations.compose
    monkeypatch.setattr(Conversations, "compose", lambda self, row: converted.append(row) or compose(self, row))
    row = {"image": "not_here.jpg", "conversations": turns("<image>", "a")}
    write_jsonl(tmp_path / "src/a.jsonl", [row] * 3000)
    with pytest.raises(TooManyBadRowsError, match="1000 of 1000 rows"):
        options = replace(SERIAL, shard_size=100)
        convert_llava_onevision(str(tmp_path / "src"), str(tmp_path / "out"), options=options)
    assert len(converted) == 1000


@pytest.mark.parametrize(
    "options",
    [{"shard_size": 0}, {"workers": -1}, {"limit": 0}, {"max_skipped": 1.5}],
    ids=lambda value: next(iter(value)),
)
def test_options_that_cannot_be(options: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(options))):
        ConvertOptions(**options)


def test_folders_with_braces_in_their_names(tmp_path: Path):
    write(tmp_path / "{src}/a.jpg", picture(0))
    write(tmp_path / "{src}/a.txt", "a")
    assert convert_folder(str(tmp_path / "{src}"), str(tmp_path / "{0}{"), options=SERIAL).written == 1


@pytest.mark.parametrize(
    "convert", [convert_llava_onevision, convert_journeydb, convert_seed_data_edit, convert_folder]
)
def test_command_line(convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        CLI(convert, args=["--help"], as_positional=True)
    shown = capsys.readouterr().out
    for part in ("SRC", "Folder for the shards", "--options.shard_size", "--options.limit", "Processes that convert"):
        assert part.lower() in shown.lower()


def test_a_conversion_from_the_command_line(tmp_path: Path):
    src = make_journeydb(tmp_path / "src")
    args = [str(src), str(tmp_path / "out"), "--wording", "prompt", "--options.workers", "1", "--options.shard_size=4"]
    summary = CLI(convert_journeydb, args=args, as_positional=True)
    assert summary.written == 30 and "30 of 33 rows written to 8 shards" in str(summary)
