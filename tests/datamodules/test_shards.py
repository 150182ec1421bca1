"""Shards give the samples that the WebDataset library makes of them, and an account of the others."""

import bz2
import gzip
import io
import json
import logging
import lzma
import os
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import webdataset as wds

from hyperbagel.bagel.images import load_image
from hyperbagel.datamodules.copies import local_shard
from hyperbagel.datamodules.documents import DocumentError
from hyperbagel.datamodules.index import index_shard
from hyperbagel.datamodules.inspect import inspect_shards
from hyperbagel.datamodules.shards import find_shards, read_samples
from hyperbagel.datamodules.sources import ShardSamples
from hyperbagel.datamodules.writer import ShardWriter
from tests.datamodules.samples import make_png, write_tar

Members = list[tuple[str, bytes]]
PNG = make_png(0)
JUNK = b"\0\5\26\7" + bytes(60)  # as macOS puts beside files
DOCUMENT = json.dumps(
    {"segments": [{"type": "text", "text": "red"}, {"type": "image", "file": "0.png", "loss": True}]}
).encode()


def sample(key: str, document: bytes = DOCUMENT) -> Members:
    return [(f"{key}.json", document), (f"{key}.0.png", PNG)]


def three(change: Callable[[str, bytes], Members]) -> Members:
    """Three samples, every member changed."""
    return [new for k in range(3) for member in sample(f"s{k}") for new in change(*member)]


def keys_and_skips(path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """What the reader at random makes of a shard; the reader from start to end must agree."""
    index = index_shard(path)
    samples = ShardSamples([path], [index], with_loss=False)
    keys = [samples.read(i).key for i in range(len(samples))]
    streamed = [item for item in read_samples(path) if hasattr(item, "members")]
    assert [item.key for item in streamed] == keys
    assert all(load_image(bytes(item.members["0.png"])).size == (24, 16) for item in streamed)
    return keys, [(record.cause, record.reason) for record in index.skipped]


def webdataset_keys(path: Path) -> list[str]:
    return [item["__key__"].removeprefix("././") for item in wds.WebDataset(str(path), shardshuffle=False)]


SYSTEM_MEMBERS: dict[str, Callable[[str, bytes], Members]] = {
    "appledouble": lambda name, data: [(f"._{name}", JUNK), (name, data)],
    "macosx": lambda name, data: [(f"__MACOSX/._{name}", JUNK), (name, data)],
    "macosx without dots": lambda name, data: [(f"__MACOSX/{name}", JUNK), (name, data)],
    "ds_store": lambda name, data: [(".DS_Store", JUNK), (name, data)],
    "windows": lambda name, data: [("Thumbs.db", JUNK), ("desktop.ini", JUNK), (name, data)],
    "synology": lambda name, data: [(f"@eaDir/{name}", JUNK), (name, data)],
    "headers": lambda name, data: [(f"PaxHeaders.12/{name}", JUNK), (name, data)],
    "notes": lambda name, data: [("__index__/x.json", JUNK), ("README", JUNK), (name, data)],
    "upper case": lambda name, data: [(name[:2] + name[2:].upper(), data)],
    "dot slash": lambda name, data: [(f"././{name}", data)],
    "long names": lambda name, data: [(name.replace("s", "s" * 200, 1), data)],
}


@pytest.mark.parametrize("change", SYSTEM_MEMBERS)
def test_what_systems_add_costs_no_sample(tmp_path: Path, change: str):
    path = write_tar(tmp_path / "mac.tar", three(SYSTEM_MEMBERS[change]))
    keys, skipped = keys_and_skips(path)
    assert [key[-1] for key in keys] == ["0", "1", "2"] and skipped == []
    if change in ("appledouble", "ds_store", "notes", "upper case", "dot slash", "long names"):
        assert webdataset_keys(path) == keys  # of the others it makes samples of junk


def test_system_members_in_folders_do_not_end_samples(tmp_path: Path):
    members = three(lambda name, data: [(f"a/b/{name}", data), (f"a/b/._{name}", JUNK)])
    keys, skipped = keys_and_skips(write_tar(tmp_path / "folders.tar", members))
    assert keys == ["a/b/s0", "a/b/s1", "a/b/s2"] and skipped == []


def test_documents_may_name_pictures_in_any_case(tmp_path: Path):
    document = DOCUMENT.replace(b"0.png", b"0.PNG")
    members = [("a.JSON", document), ("a.0.Png", PNG), *sample("b", document)]
    assert keys_and_skips(write_tar(tmp_path / "case.tar", members)) == (["a", "b"], [])
    with ShardWriter(tmp_path / "{}.tar") as writer:
        writer.write("c", json.loads(document), {"0.PNG": PNG})
        with pytest.raises(DocumentError, match="more than case"):
            writer.write("d", json.loads(document), {"0.PNG": PNG, "0.png": PNG})
        with pytest.raises(DocumentError, match="called json"):
            writer.write("d", json.loads(document), {"0.PNG": PNG, "JSON": PNG})
    assert keys_and_skips(tmp_path / "0.tar") == (["c"], [])


def test_samples_with_dots_in_their_keys_are_counted_one_by_one(tmp_path: Path):
    members = [m for key in ["s0", *(f"photo_1.5_{k}" for k in range(200)), "s1"] for m in sample(key)]
    path = write_tar(tmp_path / "dots.tar", members)
    keys, skipped = keys_and_skips(path)
    assert keys == ["s0", "s1"] and len(skipped) == 200
    reason = "key 'photo_1' has members 5_0.json, 5_1.json, 5_2.json, ...: keys must not contain dots"
    assert set(skipped) == {("dotted_key", reason)}
    summary = inspect_shards(str(path), tmp_path / "sheet.png")
    assert summary.skipped == {"dotted_key": 200}
    assert f"{path}: 'photo_1.5_0': {reason}" in str(summary)


def test_a_sample_of_the_same_beginning_keeps_its_own_members(tmp_path: Path):
    note = json.dumps({"camera": "a"}).encode()
    members = [*sample("photo"), ("photo.0.json", note), ("photo.exif.json", b"[1]"), *sample("photo.5_1")]
    keys, skipped = keys_and_skips(write_tar(tmp_path / "dots.tar", members))
    assert keys == ["photo"] and [cause for cause, _ in skipped] == ["dotted_key"]


def test_names_that_are_no_utf8_are_read(tmp_path: Path):
    names = [b"caf\xe9", b"caf\xe8", b"\x93\xfa\x96{"]
    members = [m for name in names for m in sample(name.decode("utf-8", "surrogateescape"))]
    keys, skipped = keys_and_skips(write_tar(tmp_path / "latin.tar", members))
    assert len(set(keys)) == 3 and skipped == []
    for key in keys:
        key.encode()


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_are_counted_with_their_cause(tmp_path: Path, kind: bytes):
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "a/", type=tarfile.DIRTYPE)
        for name, data in sample("s0"):
            add(tar, name, data)
        add(tar, "s1.json", DOCUMENT)
        add(tar, "s1.0.png", type=kind, linkname="s0.0.png")
        add(tar, "s2.json", type=kind, linkname="s0.json")
        add(tar, "s2.0.png", type=kind, linkname="s0.0.png")
        add(tar, "s3.json", DOCUMENT)
        add(tar, "s3.0.png", PNG)
        add(tar, "s3.note.txt", type=kind, linkname="elsewhere")
        add(tar, "n" * 200 + ".txt", type=kind, linkname="m" * 200)  # whose long names are not those of what follows
        for name, data in sample("s4"):
            add(tar, name, data)
    keys, skipped = keys_and_skips(path)
    assert keys == ["s0", "s3", "s4"]
    assert Counter(cause for cause, _ in skipped) == {"missing_member": 3}
    assert all("is a link, which is not followed; make the tar with --dereference" in reason for _, reason in skipped)


def test_members_that_come_twice_begin_another_sample(tmp_path: Path):
    keys, skipped = keys_and_skips(write_tar(tmp_path / "twice.tar", [*sample("a"), *sample("a"), *sample("b")]))
    assert keys == ["a", "b"] and [cause for cause, _ in skipped] == ["duplicate_key"]


PACKERS = {"tar.gz": gzip.compress, "tgz": gzip.compress, "TAR.BZ2": bz2.compress, "txz": lzma.compress}


@pytest.mark.parametrize("ending", PACKERS)
def test_compressed_tars_are_unpacked_once(tmp_path: Path, ending: str):
    folder, cache = tmp_path / "shards", tmp_path / "cache"
    folder.mkdir()
    whole = write_tar(tmp_path / "plain.tar", [*sample("a"), *sample("b")]).read_bytes()
    packed = folder / f"x.{ending}"
    packed.write_bytes(PACKERS[ending](whole))
    (copy,) = find_shards(str(folder), cache)
    assert copy.read_bytes() == whole and copy.name == "x.tar"
    copy.write_bytes(b"seen again")
    assert find_shards(str(packed), cache)[0].read_bytes() == b"seen again"
    packed.write_bytes(PACKERS[ending](whole[:3072] + bytes(10240)))
    assert keys_and_skips(find_shards(str(packed), cache)[0])[0] == ["a"]
    os.utime(packed, (1, 1))
    assert find_shards(str(packed), cache)[0].read_bytes() != b"seen again"


def test_compression_is_known_by_content(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    whole = write_tar(tmp_path / "plain.tar", [m for k in range(300) for m in sample(f"s{k}")]).read_bytes()
    misnamed = tmp_path / "misnamed.tar"
    misnamed.write_bytes(gzip.compress(whole))
    assert len(keys_and_skips(local_shard(str(misnamed), tmp_path))[0]) == 300
    misnamed.write_bytes(gzip.compress(whole, 0)[:200_000])
    with caplog.at_level(logging.WARNING):
        keys, skipped = keys_and_skips(local_shard(str(misnamed), tmp_path))
    assert 60 < len(keys) < 70 and [cause for cause, _ in skipped] == ["damaged_tar"]
    assert "misnamed.tar is damaged" in caplog.text
    for content, kind in ((b"\x28\xb5\x2f\xfd123", "zstd -d"), (b"PK\x03\x04123", "a zip archive")):
        misnamed.write_bytes(content)
        with pytest.raises(ValueError, match=rf"misnamed\.tar is no tar but .*{kind}"):
            find_shards(str(misnamed), tmp_path)


def test_folders_hold_tars_of_any_name(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in ("a.tar", "B.TAR", "c.tar.tmp", "d.json", "._a.tar", ".hidden.tar"):
        write_tar(tmp_path / name, sample(name[0]))
    (tmp_path / "e.tar").mkdir()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    assert [path.name for path in find_shards(str(tmp_path), tmp_path / "cache")] == ["B.TAR", "a.tar"]
    assert "a.tar.gz is left out: a.tar is there, too" in caplog.text


NAMES = ["run_10:30:00", "http:", "pipe:cat x", "s3:", "a::b", "a{0..3}b", "file:x", "per%20cent"]


@pytest.mark.parametrize("name", NAMES)
def test_what_exists_is_never_taken_for_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    file = Path(name) / "x.tar"
    write_tar(file, sample("first"))
    for place in (str(file), name, [str(file)], str(file.absolute())):
        (found,) = find_shards(place, tmp_path / "cache")
        assert found.samefile(file)
    write_tar(file, sample("second"))
    assert keys_and_skips(find_shards(f"{name}/x.tar", tmp_path / "cache")[0])[0] == ["second"]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("place", ["run_10:30:00/no.tar", "C:/data/no.tar", "no.tar", "file:no.tar", "file:///no.tar"])
def test_missing_files_are_missing(tmp_path: Path, place: str):
    with pytest.raises(FileNotFoundError, match=r"no shard .*no\.tar"):
        find_shards(place, tmp_path)


class Handler(BaseHTTPRequestHandler):
    """One file, with or without an ETag."""

    def __init__(self, state: dict[str, bytes], *args: object) -> None:
        self.state = state
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.state["content"])))
        self.send_header("ETag", str(hash(self.state["content"])))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.state["content"])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, bytes], Callable[[], None]]]:
    monkeypatch.setenv("no_proxy", "*")
    state: dict[str, bytes] = {}
    running = HTTPServer(("127.0.0.1", 0), partial(Handler, state))
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/x.tar", state, running.shutdown
    running.shutdown()
    running.server_close()


def test_remote_shards_are_copied_again_when_they_change(
    tmp_path: Path, server: tuple[str, dict[str, bytes], Callable[[], None]]
):
    url, state, stop = server
    first = write_tar(tmp_path / "1.tar", sample("a")).read_bytes()
    second = write_tar(tmp_path / "2.tar", sample("b")).read_bytes()
    state["content"] = first
    (copy,) = find_shards(url, tmp_path)
    assert copy.read_bytes() == first
    before = copy.stat()
    assert find_shards(url, tmp_path)[0].stat() == before
    state["content"] = second
    assert find_shards(url, tmp_path)[0].read_bytes() == second
    state["content"] = gzip.compress(first)
    assert find_shards(url, tmp_path)[0].read_bytes() == first
    stop()
