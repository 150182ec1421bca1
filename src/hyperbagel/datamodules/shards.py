"""WebDataset shards: which files a list of them means, and which samples are in a file."""

from __future__ import annotations

import hashlib
import logging
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from webdataset.gopen import gopen
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from hyperbagel.datamodules.corruption import Skip, SkipRecord
from hyperbagel.datamodules.documents import DocumentError, InterleavedDocument, parse_document, safe_key, safe_name
from hyperbagel.datamodules.tar import TarDamage, TarMember, scan_tar
from hyperbagel.files import whole_file

log = logging.getLogger(__name__)

MAX_SAMPLE_BYTES = 2**29
"""Largest sample, all members together, that is read into memory."""


Member: TypeAlias = bytes | NDArray[np.uint8] | Mapping[str, Any]
"""An encoded file; or, from sources that draw their samples, a (H, W, 3) picture or the parsed document."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample. key: its name; members: by file name, `json` among them."""

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
    """Where a sample is in its shard. start, end: first byte, byte behind the last; members: by name."""

    key: str
    start: int
    end: int
    members: dict[str, TarMember]

    def read(self, file: BinaryIO) -> Sample:
        """The sample with all its members."""
        return Sample(self.key, {name: self.content(file, name) for name in self.members})

    def content(self, file: BinaryIO, name: str, limit: int | None = None) -> bytes:
        """A member's content, or its first `limit` bytes."""
        member = self.members[name]
        file.seek(member.offset)
        return file.read(member.size if limit is None else min(limit, member.size))


def find_shards(shards: str | Sequence[str], cache_dir: Path) -> list[Path]:
    """The local files that a shard list means, in order.

    shards: a brace pattern (`train-{0000..0127}.tar`), a folder (all its *.tar), a URL (http:, https:, gs:, hf:, s3:,
    `pipe:command`), or several of them. What is not a file is copied once into `cache_dir`, since samples are read at
    random. Raises FileNotFoundError for a missing file and OSError when a copy fails.
    """
    paths = []
    for pattern in [shards] if isinstance(shards, str) else shards:
        if Path(pattern).is_dir():
            found = sorted(Path(pattern).glob("*.tar"))
            if not found:
                raise FileNotFoundError(f"no *.tar in the folder {pattern}")
            paths += found
        else:
            paths += [_local(url, cache_dir) for url in expand_urls(pattern)]
    if missing := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"no shard {missing[0]} ({len(missing)} of {len(paths)} missing); correct `shards`")
    if not paths:
        raise FileNotFoundError(f"no shards in {shards!r}")
    return paths


def _local(url: str, cache_dir: Path) -> Path:
    scheme = url.partition(":")[0] if ":" in url else ""
    if scheme in ("", "file"):
        return Path(url.removeprefix("file://").removeprefix("file:"))
    target = cache_dir / "shards" / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.tar"
    if not target.exists():
        log.info("copying %s to %s", url, target)
        command = f"pipe:aws s3 cp {shlex.quote(url)} -" if scheme == "s3" else url
        with (
            whole_file(target, shared=True) as unfinished,
            unfinished.open("wb") as file,
            gopen(command, "rb") as stream,
        ):
            shutil.copyfileobj(stream, file, 2**20)
    return target


def find_samples(file: BinaryIO, size: int, name: str) -> Iterator[SampleSpan | SkipRecord]:
    """All samples of a tar in order, without their contents, or why something was skipped.

    name: of the shard, for the records. A member that comes twice begins another sample of the same key. Only plain
    files of safe names count; links and the like are not followed.
    """
    group: list[TarMember] = []
    for item in scan_tar(file, size):
        if isinstance(item, TarDamage):
            place = f"{name} at byte {item.start}"
            yield SkipRecord(Skip.DAMAGED_TAR, place, f"no readable tar header up to byte {item.end}")
            continue
        key, extension = _names(item)
        if group and (key != _names(group[0])[0] or extension in (_names(member)[1] for member in group)):
            yield _span(group, name)
            group = []
        if key is not None:
            group.append(item)
    if group:
        yield _span(group, name)


def read_samples(path: Path) -> Iterator[Sample | SkipRecord]:
    """The samples of a shard in order, with their contents, or why something was skipped; documents are checked."""
    with path.open("rb") as file:
        for found in find_samples(file, path.stat().st_size, path.name):
            if isinstance(found, SkipRecord):
                yield found
                continue
            sample = found.read(file)
            try:
                sample.document()
            except DocumentError as error:
                yield SkipRecord(error.cause, f"{path.name}: {sample.key!r}", str(error))
            else:
                yield sample


def _names(member: TarMember) -> tuple[str | None, str]:
    """Key of the sample that a member belongs to, None for a name that is no sample's, and its name in the sample."""
    key, extension = base_plus_ext(member.name.removeprefix("./"))
    return key, extension or ""


def _span(group: Sequence[TarMember], name: str) -> SampleSpan | SkipRecord:
    key = _names(group[0])[0] or ""
    place = f"{name}: {key!r}"
    if not safe_key(key):
        return SkipRecord(Skip.UNSAFE_NAME, place, "the name leads out of its folder")
    if sum(member.size for member in group) > MAX_SAMPLE_BYTES:
        return SkipRecord(Skip.TOO_LONG, place, f"over the limit of {MAX_SAMPLE_BYTES} bytes a sample")
    members: dict[str, TarMember] = {}
    for member in group:
        extension = _names(member)[1]
        if not safe_name(extension):
            return SkipRecord(Skip.UNSAFE_NAME, place, f"member {extension!r} is not a plain file name")
        members[extension] = member
    return SampleSpan(key, group[0].start, group[-1].end, members)
