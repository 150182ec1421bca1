"""Local copies of shards that cannot be read at random where they are: remote ones and compressed ones."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import logging
import lzma
import os
import re
import shlex
import shutil
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from webdataset.gopen import gopen

from hyperbagel.files import whole_file, write_json

log = logging.getLogger(__name__)

_URL = re.compile(r"pipe:|(?:https?|s?ftps?|scp|gs|s3|hf|ais|htgs)://")
_BLOCK = 2**16
_HEAD_SECONDS = 10
_TAR_MAGIC_OFFSET = 257
_OPENERS: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_FOREIGN = {b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it with `zstd -d`", b"PK\x03\x04": "a zip archive"}

Version: TypeAlias = dict[str, str | int]


def local_shard(place: str, cache_dir: Path) -> Path:
    """A shard as a plain local file, copied if it must be.

    place: a file, or a URL where there is no such file. Copies have a folder each in `cache_dir` and are made anew when
    size or time of a local file change, or what a web server tells of a remote one (ETag, time, size); other remote
    files count as unchanged. A compressed file that is damaged is unpacked as far as it goes. The path that comes back
    for a missing local file does not exist. Raises OSError when a copy fails, ValueError for no tar.
    """
    path = Path(place if os.path.exists(place) else re.sub("^file:(//)?", "", place))
    if path.is_file():
        opener = _compression(path)
        if opener is None:
            return path
        stat = path.stat()
        version: Version = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        return _copied(str(path.resolve()), version, cache_dir, lambda target: _unpack(path, target))
    if _URL.match(place) is None:
        return path
    return _copied(place, _remote_version(place), cache_dir, lambda target: _download(place, target))


def _copied(origin: str, version: Version, cache_dir: Path, copy: Callable[[Path], None]) -> Path:
    """The copy of this version of a file; version: empty where it is not known, and any copy will do."""
    folder = cache_dir / "shards" / hashlib.sha256(origin.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    target, note = folder / f"{_stem(origin)}.tar", folder / "origin.json"
    try:
        known = json.loads(note.read_text())
    except (OSError, ValueError):
        known = None
    if target.is_file() and known is not None and (not version or known["version"] == version):
        return target
    log.info("copying %s to %s", origin, target)
    with whole_file(target, shared=True) as unfinished:
        copy(unfinished)
    write_json(note, {"origin": origin, "version": version})
    return target


def _stem(origin: str) -> str:
    """Of the last part of a path or URL what is fit for a file name, without its extensions."""
    last = origin.partition("?")[0].rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w-]+", "_", last.partition(".")[0])[:80] or "shard"


def _compression(path: Path) -> Callable[[Path], Any] | None:
    """What opens a compressed file; None for any other. Raises ValueError for what is known not to be read."""
    with path.open("rb") as file:
        head = file.read(_TAR_MAGIC_OFFSET + 5)
    if head[_TAR_MAGIC_OFFSET:] == b"ustar":
        return None
    for magic, kind in _FOREIGN.items():
        if head.startswith(magic):
            raise ValueError(
                f"{path} is no tar but {kind}; shards are tars, plain or compressed with gzip, bzip2 or xz"
            )
    return next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)


def _unpack(path: Path, target: Path) -> None:
    """Write the content of a compressed file, or of one that is not."""
    opener = _compression(path)
    with opener(path) if opener else path.open("rb") as packed, target.open("wb") as file:
        while True:
            try:
                block = packed.read(_BLOCK)
            except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
                log.warning("%s is damaged (%s) and read as far as it goes; pack it again", path, error)
                return
            if not block:
                return
            file.write(block)


def _download(url: str, target: Path) -> None:
    command = f"pipe:aws s3 cp {shlex.quote(url)} -" if url.startswith("s3:") else url
    packed = target.with_suffix(".download.tmp")
    try:
        with packed.open("wb") as file, gopen(command, "rb") as stream:
            shutil.copyfileobj(cast(BinaryIO, stream), file, 2**20)
        if _compression(packed) is None:
            os.replace(packed, target)
        else:
            _unpack(packed, target)
    finally:
        packed.unlink(missing_ok=True)


def _remote_version(url: str) -> Version:
    """What a web server tells of a file now; empty where nothing is known, such as without a network."""
    if not url.startswith(("http:", "https:")):
        return {}
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_HEAD_SECONDS) as answer:
            headers = {name: answer.headers.get(name) for name in ("ETag", "Last-Modified", "Content-Length")}
    except (OSError, ValueError) as error:
        log.info("nothing is known of %s (%s); a copy that is there is used", url, error)
        return {}
    return {name: value for name, value in headers.items() if value is not None}
