"""Tar archives as data sets ship them: compressed, and sometimes cut into parts. They are only read from the start."""

from __future__ import annotations

import io
import logging
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from tqdm import tqdm

from hyperbagel.datamodules.convert.errors import FormatError
from hyperbagel.datamodules.convert.files import watch
from hyperbagel.datamodules.convert.names import normal_name, stays_inside
from hyperbagel.datamodules.documents import system_name
from hyperbagel.files import naming, write_text
from hyperbagel.messages import clip, shown

log = logging.getLogger(__name__)

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")


class ChainedFiles(io.RawIOBase):
    """Files read one after the other, as if they had been put together with `cat`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._file: BinaryIO | None = None

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the buffer; 0 at the end of the last file."""
        while True:
            if self._file is None:
                if not self._paths:
                    return 0
                self._file = self._paths.pop(0).open("rb")
            data = self._file.read(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Close the file that is being read."""
        if self._file is not None:
            self._file.close()
        super().close()


def archive_name(path: Path) -> str | None:
    """Name of an archive without its extension and the number of its part; None for other files."""
    name = path.name.partition(".part-")[0]
    found = (suffix for suffix in ARCHIVE_SUFFIXES if name.lower().endswith(suffix) and not system_name(name))
    return next((name[: -len(suffix)] for suffix in found), None)


def find_archives(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The archives in a folder by name, each with its parts in order."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        name = archive_name(path)
        if name is not None and path.is_file():
            found.setdefault(name, []).append(path)
    return {name: tuple(paths) for name, paths in found.items()}


@contextmanager
def archive_members(parts: Sequence[Path]) -> Iterator[Iterator[tuple[str, BinaryIO]]]:
    """Regular files of an archive that no system added: name without `.` and empty parts, and the content, to be read
    before going on.

    Raises FormatError, on entering or while reading, for what is no archive or cut off.
    """
    stream = io.BufferedReader(ChainedFiles(parts), 2**20)
    last = "its beginning"
    try:
        with stream, tarfile.open(fileobj=stream, mode="r|*") as tar:

            def regular() -> Iterator[tuple[str, BinaryIO]]:
                nonlocal last
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # it would remember them all
                    content = tar.extractfile(member) if member.isreg() else None
                    name = normal_name(member.name)
                    if content is not None and not system_name(name):
                        last = name
                        yield name, cast(BinaryIO, content)

            yield regular()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise FormatError(
            f"{parts[0]}: not a tar archive, cut off or damaged after {clip(last, 100)} ({clip(error, 100)}); "
            "download it again"
        ) from error


@dataclass(frozen=True, slots=True)
class Unpacking:
    """An archive to be unpacked into a folder before its files can be read in any order."""

    parts: tuple[Path, ...]
    target: Path

    def run(self) -> None:
        """Unpack, unless that was done and the archive is the same.

        Files with names that lead out of the folder are left out, with a warning.
        """
        done, state = self.target / ".unpacked", watch(self.parts).digest
        if done.exists():
            if done.read_text() == state:
                return
            shutil.rmtree(self.target)
        with archive_members(self.parts) as members:
            for name, content in tqdm(members, f"unpack {self.parts[0].name}", unit="file"):
                if not stays_inside(name):
                    log.warning("%s: left out %s, which leads out of the folder", self.parts[0], shown(name))
                    continue
                path = self.target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with naming(path), path.open("wb") as file:
                    shutil.copyfileobj(content, file)
        write_text(done, state)
