"""The files that a data set consists of: found in folders, and watched, so that a change of them is noticed."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hyperbagel.datamodules.documents import system_name
from hyperbagel.messages import clip

_BROKEN = (-1, 0)


@dataclass(frozen=True)
class FolderFiles:
    """Files of a folder and its subfolders.

    files: size in bytes and time of the last change in ns by name, in the order of names; left_out: hidden and system
    files and folders; repeated: linked folders that are, or hold, one that is there already.
    """

    root: Path
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    def names(self, suffixes: Collection[str]) -> list[str]:
        """Names with one of some endings, compared in lower case."""
        return [name for name in self.files if _suffix(name) in suffixes]

    def notes(self) -> list[str]:
        """What to tell of the files that were left out."""
        kinds = (
            (self.left_out, "left out {} hidden and system files or folders"),
            (self.repeated, "passed over {} links to folders that are there already"),
        )
        return [some(text.format(f"{len(names):,}"), names) for names, text in kinds if names]


@dataclass(frozen=True, slots=True)
class FileStates:
    """Number of files, and a digest of their names, sizes and times."""

    count: int
    digest: str


def find_files(root: Path, suffixes: Collection[str], leave_out: Path | None = None) -> FolderFiles:
    """Files with one of some endings (in lower case, with the dot) in a folder and its subfolders, linked ones too.

    A folder that several links lead to is searched once. leave_out: a subfolder that does not belong to it. Links to
    nothing count as files. Raises OSError for a folder that cannot be read.
    """
    found = FolderFiles(root)
    seen = set() if leave_out is None or not leave_out.is_dir() else {_identity(leave_out)}
    folders, links = deque([""]), deque[str]()  # links last, so that a folder has its own name and not a link's
    while folders or links:
        linked = not folders
        folder = links.popleft() if linked else folders.popleft()
        identity = _identity(root / folder)
        if identity in seen:
            if linked:
                found.repeated.append(folder)
            continue
        seen.add(identity)
        with os.scandir(root / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = f"{folder}/{entry.name}" if folder else entry.name
                if _is_folder(entry):
                    if entry.name.startswith(".") or system_name(f"{entry.name}/x"):
                        found.left_out.append(name)
                    else:
                        (links if entry.is_symlink() else folders).append(name)
                elif _suffix(name) in suffixes and (state := _state(entry)):
                    if system_name(entry.name):
                        found.left_out.append(name)
                    else:
                        found.files[name] = state
    ordered = dict(sorted(found.files.items()))
    found.files.clear()
    found.files.update(ordered)
    return found


def watch(files: Iterable[Path], folders: Iterable[FolderFiles] = ()) -> FileStates:
    """The states of single files, by their names without folders, and of all files of folders."""
    digest, count = hashlib.sha256(), 0
    for name, size, time in _states(files, folders):
        digest.update(name.encode("utf-8", "surrogateescape") + f"\0{size} {time}\n".encode())
        count += 1
    return FileStates(count, digest.hexdigest()[:16])


def some(text: str, names: Collection[str]) -> str:
    """A text with the first few of some names."""
    return clip(f"{text}, such as {', '.join(list(names)[:3])}")


def _states(files: Iterable[Path], folders: Iterable[FolderFiles]) -> Iterator[tuple[str, int, int]]:
    for path in files:
        status = path.stat()
        yield path.name, status.st_size, status.st_mtime_ns
    for folder in folders:
        for name, (size, time) in folder.files.items():
            yield name, size, time


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _state(entry: os.DirEntry[str]) -> tuple[int, int] | None:
    """Size and time of a file, those of no file for a link to nothing, None for pipes and devices."""
    try:
        if not entry.is_file():
            return _BROKEN if entry.is_symlink() and not os.path.exists(entry.path) else None
        status = entry.stat()
    except OSError:
        return _BROKEN
    return status.st_size, status.st_mtime_ns
