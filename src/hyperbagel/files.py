"""Writes files that are whole or absent, and tries what a run reads and writes before work is spent on it."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from hyperbagel.messages import clip

if TYPE_CHECKING:
    from PIL import Image

USUAL_PICTURES = (".png", ".jpg", ".webp", ".bmp", ".tiff")
"""Endings that every build of Pillow writes; named where another one is refused."""


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""What writing to an open file fails with; such errors carry no file name."""


_WHERE_FROM = "run what makes them first, correct the names, or leave out what asks for them"


class WriteError(OSError):
    """A file that cannot be written; the message is one line with the file, the cause and the remedy."""


# Writing


@contextmanager
def whole_file(path: str | Path, *, shared: bool = False) -> Iterator[Path]:
    """A name beside `path` to write to. What is there when the block ends takes the place of `path`; when the block
    raises, it is removed, and what was at `path` before stays. Missing folders are made.

    shared: other processes may write the same file at the same time, so each gets a name of its own (which a killed
    process leaves behind, where otherwise the next one writes over it). Raises WriteError for a full disk, a missing
    permission and the like.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp" if shared else f"{path.name}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _to_disk(partial)
            partial.replace(path)
        except BaseException:
            if partial.is_file():
                partial.unlink()
            raise


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """An empty folder beside `folder` to fill. It takes the place of `folder`, whose old content is removed, when the
    block ends; when the block raises, it is removed, and `folder` stays as it was. Raises WriteError as `whole_file`.
    """
    folder = Path(folder).absolute()
    partial, old = (folder.with_name(f"{folder.name}.{suffix}") for suffix in ("tmp", "old"))
    with naming(folder):
        if old.exists() and not folder.exists():  # a process was killed between the two renamings
            old.rename(folder)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            yield partial
            _move(partial, folder, old)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def first_folder(folder: str | Path) -> Iterator[Path]:
    """As `whole_folder`, for a folder that several processes may make at once: that of the first one stays."""
    folder = Path(folder).absolute()
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    with naming(folder):
        try:
            partial.mkdir(parents=True)
            yield partial
            try:
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # no other process was first
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _move(partial: Path, folder: Path, old: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):  # kept, as somebody may stand in it
        for item in partial.iterdir():
            item.rename(folder / item.name)
        partial.rmdir()
        return
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a small file at once. Raises WriteError."""
    with whole_file(path, shared=True) as partial:
        partial.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8; half characters, as of a file name in another encoding, are written as JSON and Python escape them.

    Raises WriteError.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, content: Any, indent: int = 1) -> None:
    """Write a JSON file. Raises WriteError."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def write_picture(path: str | Path, picture: Image.Image) -> None:
    """Write a picture in the format that the name's ending says. Raises WriteError, ValueError as `check_picture`."""
    write_bytes(path, _encoded(path, picture))


def _encoded(path: str | Path, picture: Image.Image) -> bytes:
    from PIL import Image

    ending, content = Path(path).suffix.lower(), io.BytesIO()
    try:
        picture.save(content, Image.registered_extensions()[ending])
    except Exception as error:  # formats that are only read have no writer, some no colours, others a limit of size
        known = ", ".join(USUAL_PICTURES)
        cause = "" if isinstance(error, KeyError) else f" ({clip(error, 80)})"
        raise ValueError(
            f"{path}: pictures cannot be written as {ending or 'a name without ending'}{cause}; use {known}"
        ) from error
    return content.getvalue()


def _to_disk(file: Path) -> None:
    """Have the content on disk before the name, lest a power cut leaves the name of an empty file."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Errors


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Turn what fails while `path` is written into a WriteError that names it. Errors about other files stay."""
    try:
        yield
    except Exception as error:
        if (cause := _cause(error, Path(path))) is None:
            raise
        message = f"{path}: not written: {cause}; make room, or name a place that can be written to"
        raise WriteError(clip(message)) from error


def _cause(error: BaseException | None, path: Path) -> str | None:
    """Why writing failed, None where something else did. Writers of tensors wrap the error of the disk in their own."""
    while error is not None:
        if isinstance(error, WriteError):
            return None  # named already
        if isinstance(error, SafetensorError):
            return str(error).removeprefix("Error while serializing: ")
        if isinstance(error, OSError) and error.errno is not None:
            about = error.filename2 or error.filename
            if about is None:
                return error.strerror if error.errno in _DISK else None
            touched = Path(os.fsdecode(about)) if isinstance(about, str | bytes) else Path()
            mine = touched.parent == path.parent and touched.name.startswith(path.name)
            return error.strerror if mine or touched in path.parents else None
        error = error.__cause__ or error.__context__
    return None


# Needs


def require_all(checks: Iterable[Callable[[], object]]) -> None:
    """Make all checks before work begins, and raise one error that tells what all of them found.

    A check raises OSError or ValueError. Missing files, of which a FileNotFoundError names one, are listed together.
    """
    missing: dict[str, OSError] = {}
    others: dict[str, Exception] = {}
    for check in checks:
        try:
            check()
        except FileNotFoundError as error:
            name = error.filename
            (missing if name is not None else others).setdefault(str(name or error), error)
        except (OSError, ValueError) as error:
            others.setdefault(str(error), error)
    if len(missing) + len(others) == 1 and others:
        raise next(iter(others.values()))
    told = [*others]
    if missing:
        told = [f"no such file{'s' * (len(missing) > 1)}: {', '.join(missing)}; {_WHERE_FROM}", *told]
    if told:
        raise (FileNotFoundError if missing else ValueError)("; ".join(told))


# Places


def check_file(path: str | Path) -> None:
    """Refuse, before any work, a name that cannot be written: a folder in its place, no permission, no such disk.

    Nothing is left behind. Raises WriteError.
    """
    path = Path(path)
    if os.path.isdir(path) or not path.name:  # unlike Path.is_dir, says no for an impossible name
        raise WriteError(f"{path}: is a folder; name a file in it")
    _try(path, path.parent)


def check_picture(path: str | Path) -> None:
    """As `check_file`, for pictures. Raises ValueError for an ending that no picture can be written with."""
    from PIL import Image

    check_file(path)
    _encoded(path, Image.new("RGB", (8, 8)))


def check_folder(folder: str | Path) -> None:
    """Refuse, before any work, a folder that cannot be written into: a file in its place, no permission. WriteError."""
    folder = Path(folder)
    if os.path.isfile(folder):
        raise WriteError(f"{folder}: is a file; name a folder")
    _try(folder, folder)


def _try(path: Path, folder: Path) -> None:
    """Write and remove a file in a folder, and the folder too where it was not there; permissions alone do not tell."""
    missing = [place for place in (folder, *folder.parents) if not os.path.exists(place)]
    with naming(path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            trial = folder / f"{path.name or 'trial'}.{uuid.uuid4().hex[:12]}.tmp"
            trial.touch()
            trial.unlink()
        finally:
            for place in missing:
                if place.is_dir():
                    place.rmdir()
