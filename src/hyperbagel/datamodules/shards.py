"""WebDataset shards: which files a list of them means, and which samples are in a file."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from hyperbagel.datamodules.copies import local_shard
from hyperbagel.datamodules.documents import (
    MAX_JSON_BYTES,
    DocumentError,
    InterleavedDocument,
    parse_document,
    safe_key,
    safe_name,
    system_name,
)
from hyperbagel.datamodules.skipped import Skip, SkipRecord
from hyperbagel.datamodules.tar import TarDamage, TarMember, scan_tar

log = logging.getLogger(__name__)

MAX_SAMPLE_BYTES = 2**29
"""Largest sample, all members together, that is read into memory."""

_THREADS = 8
_TAR = re.compile(r"(.+)\.(?:tar(?:\.(?:gz|bz2|xz|zst))?|tgz|tbz2?|txz|tzst)", re.IGNORECASE)
_META = re.compile(r"__[^/]*__($|/)")  # notes of the WebDataset library
_SURROGATE = re.compile("[\udc80-\udcff]")

Member: TypeAlias = bytes | NDArray[np.uint8] | Mapping[str, Any]
"""An encoded file; or, from sources that draw their samples, a (H, W, 3) picture or the parsed document."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample. key: its name; members: by file name, `json` among them.

    Examples:
        >>> sample = Sample("a", {"json": {"segments": [{"type": "text", "text": "hello", "loss": True}]}})
        >>> sample.document().parts
        (TextPart(text='hello', loss=True),)
    """

    key: str
    members: Mapping[str, Member]

    def document(self) -> InterleavedDocument:
        """The checked document; raises DocumentError."""
        data = self.members.get("json")
        if data is None:
            raise DocumentError(Skip.MISSING_MEMBER, "the sample has no member `json`")
        if isinstance(data, np.ndarray):
            raise DocumentError(Skip.BAD_JSON, "member `json` is an array")
        return parse_document(data, self.members.keys() - {"json"})


@dataclass(frozen=True, slots=True)
class SampleSpan:
    """Where a sample is in its shard.

    start, end: first byte, byte after the last; members: by name; unread: members that are links and the like, and
    why they cannot be read.
    """

    key: str
    start: int
    end: int
    members: dict[str, TarMember]
    unread: Mapping[str, str] = field(default_factory=dict)

    def read(self, file: BinaryIO) -> Sample:
        """The sample with all its members."""
        return Sample(self.key, {name: self.content(file, name) for name in self.members})

    def document(self, file: BinaryIO) -> InterleavedDocument:
        """The checked document; pictures are not read. Raises DocumentError."""
        content = {"json": self.content(file, "json")} if "json" in self.members else {}
        try:
            return Sample(self.key, content | dict.fromkeys(self.members.keys() - {"json"}, b"")).document()
        except DocumentError as error:
            if error.cause is not Skip.MISSING_MEMBER or not self.unread:
                raise
            name, reason = next(iter(self.unread.items()))
            raise DocumentError(error.cause, f"{error}; {name!r} {reason}") from None

    def content(self, file: BinaryIO, name: str) -> bytes:
        """A member's content."""
        member = self.members[name]
        file.seek(member.offset)
        return file.read(member.size)


def find_shards(shards: str | Sequence[str], cache_dir: Path) -> list[Path]:
    """The local files that a shard list means, in order.

    shards: a brace pattern (`train-{0000..0127}.tar`), a folder (all its tars), a URL (http:, https:, gs:, hf:, s3:,
    `pipe:command`), or several of them. What exists as a file or folder is never taken for a pattern or a URL. What
    is remote or compressed is copied into `cache_dir`, since samples are read at random: see `local_shard`.
    Raises FileNotFoundError for a missing file, OSError when a copy fails, ValueError for a file that is no tar.
    """
    places: list[str] = []
    for pattern in [shards] if isinstance(shards, str) else shards:
        for place in [pattern] if os.path.exists(pattern) else expand_urls(pattern):
            places += _tars(Path(place)) if os.path.isdir(place) else [place]
    with ThreadPoolExecutor(_THREADS) as pool:
        paths = list(pool.map(lambda place: local_shard(place, cache_dir), places))
    if missing := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"no shard {missing[0]} ({len(missing)} of {len(paths)} missing); correct `shards`")
    if not paths:
        raise FileNotFoundError(f"no shards in {shards!r}")
    return paths


def find_rewritten(shards: str | Sequence[str], cache_dir: Path, out: Path) -> list[Path]:
    """As `find_shards`, of those that are written anew into the folder `out`, each under its name.

    Raises ValueError also when `out` holds them, or when two of them would be written to the same file.
    """
    paths = find_shards(shards, cache_dir)
    if any(path.resolve().parent == out.resolve() for path in paths):
        raise ValueError(f"{out}: holds the shards that are to be read; give another output folder")
    if len({path.name for path in paths}) < len(paths):
        raise ValueError("two input shards have the same name, and would be written to the same file; rename one")
    return paths


def _tars(folder: Path) -> list[str]:
    """The tars in a folder; of one that is there packed and unpacked, the latter."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        match = _TAR.fullmatch(path.name)
        if match is None or system_name(path.name) or not path.is_file():
            continue
        if (twin := found.setdefault(match[1], path)) is not path:
            log.warning("%s is left out: %s is there, too", path, twin.name)
    if not found:
        raise FileNotFoundError(f"no *.tar in the folder {folder}")
    return [str(path) for path in found.values()]


def find_samples(file: BinaryIO, size: int, name: str) -> Iterator[SampleSpan | SkipRecord]:
    """All samples of a tar in order, without their contents, or why something was skipped.

    name: of the shard, for the records. Samples are what the WebDataset library makes of a tar: neighbours that are
    named alike up to the first dot, with endings in lower case. A member that comes twice begins another sample of the
    same key. Files of operating systems are passed over; links and the like are not followed.
    """
    key, members = "", dict[str, TarMember]()
    for item in scan_tar(file, size):
        if isinstance(item, TarDamage):
            place = f"{name} at byte {item.start}"
            yield SkipRecord(Skip.DAMAGED_TAR, place, f"no readable tar header up to byte {item.end}")
            continue
        item_key, ending = _names(item.name)
        if item_key is None:
            continue
        if members and (item_key != key or ending in members):
            yield from _found(file, key, members, name)
            members = {}
        key, members[ending] = item_key, item
    if members:
        yield from _found(file, key, members, name)


def read_samples(path: Path) -> Iterator[Sample | SkipRecord]:
    """The samples of a shard in order, with their contents, or why something was skipped; documents are checked."""
    keys: set[str] = set()
    with path.open("rb") as file:
        for found in find_samples(file, path.stat().st_size, path.name):
            if isinstance(found, SkipRecord):
                yield found
                continue
            try:
                if found.key in keys:
                    raise DocumentError(Skip.DUPLICATE_KEY, "an earlier sample has the same key")
                found.document(file)
            except DocumentError as error:
                yield SkipRecord(error.cause, f"{path.name}: {found.key!r}", str(error))
            else:
                keys.add(found.key)
                yield found.read(file)


def _names(name: str) -> tuple[str | None, str]:
    """Key of the sample that a member belongs to, None for a name that is no sample's, and its name in the sample."""
    if _SURROGATE.search(name):  # bytes that are no UTF-8; any other encoding keeps names apart
        name = name.encode("utf-8", "surrogateescape").decode("latin-1")
    plain = re.sub("/+", "/", "/".join(part for part in name.split("/") if part != "."))
    if system_name(plain) or _META.match(plain):
        return None, ""
    key, ending = base_plus_ext(plain)
    return key, (ending or "").lower()


def _found(file: BinaryIO, key: str, members: dict[str, TarMember], name: str) -> Iterator[SampleSpan | SkipRecord]:
    """What a group of members is: a sample, or why not, and the samples that dots in their keys have put into it."""
    lost = [ending for ending in members if ending.endswith(".json")]
    if "json" in members:  # others may be notes about pictures
        lost = [ending for ending in lost if _is_document(file, members[ending])]
    listed = ", ".join(lost[:3])
    for ending in lost:
        whole = f"{key}.{ending.removesuffix('.json')}"
        reason = f"key {key!r} has members {listed}, ...: keys must not contain dots"
        yield SkipRecord(Skip.DOTTED_KEY, f"{name}: {whole!r}", reason)
    if "json" in members or not lost:
        yield _span(key, members, name)


def _is_document(file: BinaryIO, member: TarMember) -> bool:
    file.seek(member.offset)
    try:
        content = json.loads(file.read(member.size)) if member.size <= MAX_JSON_BYTES else None
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "segments" in content


def _span(key: str, members: dict[str, TarMember], name: str) -> SampleSpan | SkipRecord:
    place = f"{name}: {key!r}"
    if not safe_key(key):
        return SkipRecord(Skip.UNSAFE_NAME, place, "no plain relative name of at most 255 characters a part")
    if sum(member.size for member in members.values()) > MAX_SAMPLE_BYTES:
        return SkipRecord(Skip.TOO_LONG, place, f"over the limit of {MAX_SAMPLE_BYTES} bytes a sample")
    for ending in members:
        if not safe_name(ending):
            return SkipRecord(Skip.UNSAFE_NAME, place, f"member {ending!r} is not a plain file name")
    first, last = next(iter(members.values())), next(reversed(members.values()))
    readable = {ending: member for ending, member in members.items() if not member.unread}
    unread = {ending: member.unread for ending, member in members.items() if member.unread}
    return SampleSpan(key, first.start, last.end, readable, unread)
