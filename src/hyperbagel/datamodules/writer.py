"""Writing shards that the reader accepts, checked as they are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import webdataset as wds

from hyperbagel.bagel.images import ImageError, image_size
from hyperbagel.datamodules.documents import DocumentError, InterleavedDocument, parse_document, safe_key
from hyperbagel.datamodules.shards import Sample
from hyperbagel.datamodules.skipped import Skip, image_skip
from hyperbagel.files import whole_file


class ShardWriter:
    """Writes documents into numbered WebDataset shards; a shard appears under its name only when it is complete.

    pattern: file names with the shard's number, such as `out/train-{:06d}.tar`; folders are made;
    samples_per_shard, bytes_per_shard: a new shard begins when either is reached; first: number of the first shard.
    The same documents give the same bytes. Raises FileExistsError rather than replace a shard.
    """

    def __init__(
        self,
        pattern: str | Path,
        samples_per_shard: int = 10_000,
        bytes_per_shard: int = 2**30,
        first: int = 0,
    ) -> None:
        self.pattern = str(pattern)
        if self.pattern.format(0) == self.pattern.format(1):
            raise ValueError(f"shard pattern {self.pattern!r} needs a place for the number, as in train-{{:06d}}.tar")
        self.samples_per_shard = samples_per_shard
        self.bytes_per_shard = bytes_per_shard
        self.samples = 0
        self.shards: list[Path] = []
        self._next = first
        self._in_shard = 0
        self._bytes = 0
        self._tar: wds.TarWriter | None = None
        self._unfinished = ExitStack()

    def write(
        self,
        key: str,
        document: Mapping[str, Any],
        images: Mapping[str, bytes],
        others: Mapping[str, bytes] = MappingProxyType({}),
    ) -> InterleavedDocument:
        """Check one sample and append it.

        key: unique name without dots in its last component; images: file name -> encoded picture; others: further
        members, which are not looked at. Raises DocumentError
        that names the key and the segment; nothing is written then, and the writer can go on. A full disk raises
        OSError, which becomes a WriteError where the `with` block ends.
        """
        checked = self._check(key, document, images)
        try:
            content = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise DocumentError(Skip.BAD_JSON, f"sample {key!r}: `meta` cannot be written as JSON: {error}") from error
        if self._tar is None:
            self._open()
        assert self._tar is not None
        self._bytes += self._tar.write({"__key__": key, "json": content, **images, **others})
        self._in_shard += 1
        self.samples += 1
        if self._in_shard >= self.samples_per_shard or self._bytes >= self.bytes_per_shard:
            self.close()
        return checked

    def rewrite(
        self, sample: Sample, document: InterleavedDocument, more: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        """Append a sample that was read, with this document in the place of its own, and with further members.

        What is in it beside the pictures stays as it is. Raises as `write`.
        """
        pictures = {image.file for image in document.images}
        members: dict[str, Any] = {name: data for name, data in sample.members.items() if name != "json"}
        images = {name: data for name, data in members.items() if name in pictures}
        others = {name: data for name, data in members.items() if name not in pictures}
        self.write(sample.key, document.content(), images, {**others, **more})

    def _check(self, key: str, document: Mapping[str, Any], images: Mapping[str, bytes]) -> InterleavedDocument:
        if not safe_key(key) or "." in key.rpartition("/")[2]:
            raise DocumentError(Skip.UNSAFE_NAME, f"sample {key!r}: a key is a relative name without dots")
        names = [name.lower() for name in images]  # as they will be read
        if "json" in names:
            raise DocumentError(Skip.BAD_SCHEMA, f"sample {key!r}: a picture cannot be called json")
        if len(set(names)) < len(names):
            raise DocumentError(Skip.BAD_SCHEMA, f"sample {key!r}: names of pictures must differ in more than case")
        try:
            checked = parse_document(document, images.keys(), strict=True)
        except DocumentError as error:
            raise DocumentError(error.cause, f"sample {key!r}: {error}") from None
        for name, data in images.items():
            try:
                image_size(data, name=repr(name))
            except ImageError as error:
                raise DocumentError(image_skip(error).cause, f"sample {key!r}, picture {error}") from error
        return checked

    def _open(self) -> None:
        path = Path(self.pattern.format(self._next))
        if path.exists():
            raise FileExistsError(f"{path} exists; remove it or write elsewhere")
        with ExitStack() as opening:
            stream = opening.enter_context(opening.enter_context(whole_file(path)).open("wb"))
            # USTAR would refuse long names; a fixed time makes equal documents equal files.
            writer = wds.TarWriter(stream, encoder=False, mtime=0, format="PAX_FORMAT")
            self._tar = opening.enter_context(writer)
            self._unfinished = opening.pop_all()
        self.shards.append(path)
        self._next += 1

    def close(self) -> None:
        """Finish the current shard; writing again begins the next. Raises WriteError."""
        self._end(None, None, None)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the shard, or, after an error, drop the unfinished one."""
        self._end(kind, error, trace)

    def _end(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._tar is None:
            return
        self._tar = None
        self._in_shard = self._bytes = 0
        shard = self.shards.pop()
        self._unfinished.__exit__(kind, error, trace)
        if error is None:
            self.shards.append(shard)
