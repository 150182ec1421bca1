"""Names of pictures as data sets give them, and the files that they mean."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from hyperbagel.datamodules.convert.errors import BadRowError, RowCause
from hyperbagel.datamodules.documents import safe_key
from hyperbagel.datamodules.skipped import Skip
from hyperbagel.messages import shown

_ESCAPED = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8, as Python reads names of files
_DRIVE = re.compile(r"[A-Za-z]:/")


def plain_name(name: object) -> str:
    """A picture's name as data sets give it, without spaces around it, `.` and empty parts, with `/` for backslashes.

    Raises BadRowError for what is no name, or leads out of its folder.
    """
    if not isinstance(name, str) or not name.strip():
        raise BadRowError(Skip.BAD_SCHEMA, f"the name of a picture must be a string, not {shown(name)}")
    if "://" in name:
        raise BadRowError(Skip.UNSAFE_NAME, f"{shown(name)} is an address; download the pictures and name their files")
    plain = normal_name(name.strip().replace("\\", "/"))
    if not stays_inside(plain) or _DRIVE.match(plain):
        raise BadRowError(Skip.UNSAFE_NAME, f"{shown(name)} is not a relative name inside the folder of pictures")
    return plain


def normal_name(name: str) -> str:
    """A name without `.` and empty parts."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return ("/" if name.startswith("/") else "") + "/".join(parts)


def stays_inside(name: str) -> bool:
    """Whether a name, which need not be UTF-8, stays inside the folder that it starts from."""
    return safe_key(_ESCAPED.sub("_", name))


def name_key(name: str) -> str:
    """The same for names that differ in their Unicode form, or in the case of what stands after the last dot."""
    if not name.isascii():
        name = unicodedata.normalize("NFC", name)
    stem, dot, ending = name.rpartition(".")
    return stem + dot + ending.lower()


def clean_name(name: str) -> str:
    """A name, or another text, with escapes in place of what is no UTF-8."""
    if name.isascii():
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character that was escaped in JSON
        return name.encode("utf-8", "backslashreplace").decode()


class PictureFile(bytes):
    """An encoded picture and the name that it was read by, for messages."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """Where pictures are: a name is looked up in each of the folders in turn."""

    roots: tuple[Path, ...]

    def find(self, name: str) -> Path | None:
        """The file of a plain name, or else the one whose name differs as in `name_key`.

        Archives often have one folder around everything; it may be missing in the name.
        """
        for look in (_exact, _similar):
            for root in self.roots:
                if path := look(root, name):
                    return path
                inner = only_folder(root)
                if inner is not None and (path := look(inner, name)):
                    return path
        return None

    def read(self, name: object) -> bytes:
        """The encoded picture. Raises BadRowError."""
        plain = plain_name(name)
        exact = str(name)  # spaces around a name may belong to it
        path = (self.find(exact) if exact != plain and stays_inside(exact) else None) or self.find(plain)
        if path is None:
            hint = "" if os.path.splitext(plain)[1] else "; a name needs its ending, such as .png"
            where = " or ".join(map(str, self.roots))
            raise BadRowError(RowCause.MISSING_IMAGE, f"no picture {shown(plain)} in {where}{hint}")
        try:
            picture = PictureFile(path.read_bytes())
        except OSError as error:
            raise BadRowError(Skip.UNREADABLE_IMAGE, f"{path}: {error.strerror}") from error
        picture.name = plain
        return picture


def _exact(folder: Path, name: str) -> Path | None:
    path = folder / name
    return path if os.path.isfile(path) else None  # unlike Path.is_file, it takes names that are too long


def _similar(folder: Path, name: str) -> Path | None:
    for part in name.split("/"):
        try:
            found = _entries(folder, folder.stat().st_mtime_ns).get(name_key(part))
        except OSError:
            return None
        if found is None:
            return None
        folder = folder / found
    return folder if os.path.isfile(folder) else None


@lru_cache(maxsize=16)
def _entries(folder: Path, _changed: int) -> dict[str, str | None]:
    """Names in a folder by their keys, None where several have the same. _changed: time of the folder's last change."""
    found: dict[str, str | None] = {}
    for name in os.listdir(folder):
        key = name_key(name)
        found[key] = None if key in found else name
    return found


def only_folder(root: Path) -> Path | None:
    """The subfolder of a folder that has just one."""
    try:
        return _only_folder(root, root.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=1024)
def _only_folder(root: Path, _changed: int) -> Path | None:
    if not root.is_dir():
        return None
    folders = list(islice((path for path in root.iterdir() if path.is_dir()), 2))
    return folders[0] if len(folders) == 1 else None
