"""Pictures of a data set: found by their names, decoded once to be sure of them, and put into documents."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from glob import escape
from itertools import islice
from pathlib import Path
from typing import Any

from hyperbagel.bagel.images import ImageError, image_format, load_image
from hyperbagel.datamodules.convert.errors import BadRowError, RowCause
from hyperbagel.datamodules.corruption import Skip, image_skip
from hyperbagel.datamodules.documents import safe_key

PICTURE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
})  # fmt: skip
"""Names that count as pictures when a folder is searched."""

_UNREAD_SUFFIXES = frozenset({
    ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".psd", ".xcf", ".tga", ".ico", ".exr", ".hdr", ".qoi",
    ".dds", ".dib", ".pcx", ".eps", ".pdf", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
})  # fmt: skip
_EXTENSIONS = {"JPEG": "jpg"}


def missing_picture(text: Path) -> BadRowError:
    """Why a text file has no picture beside it: there is none, or it is of a format that is not read."""
    for path in sorted(text.parent.glob(escape(text.stem) + ".*")):
        if path.suffix.lower() in _UNREAD_SUFFIXES:
            message = f"{path.name} is of a format that is not read here; convert it to PNG or JPEG"
            return BadRowError(Skip.UNREADABLE_IMAGE, message)
    return BadRowError(RowCause.MISSING_IMAGE, "there is no picture of the same name")


def plain_name(name: object) -> str:
    """A picture's name as data sets give it, without `./` in front.

    Raises BadRowError for what is no name, or leads out of its folder.
    """
    if not isinstance(name, str) or not name.strip():
        raise BadRowError(Skip.BAD_SCHEMA, f"the name of a picture must be a string, not {name!r}")
    plain = name.strip().removeprefix("./")
    if not safe_key(plain):
        raise BadRowError(Skip.UNSAFE_NAME, f"{name!r} is not a relative name inside the folder of pictures")
    return plain


class PictureFile(bytes):
    """An encoded picture and the name that it was read by, for messages."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """Where pictures are: a name is looked up in each of the folders in turn."""

    roots: tuple[Path, ...]

    def find(self, name: str) -> Path | None:
        """The file of a plain name. Archives often have one folder around everything; it may be missing in the name."""
        for root in self.roots:
            for folder in (root, _only_folder(root)):
                if folder is not None and (path := folder / name).is_file():
                    return path
        return None

    def read(self, name: object) -> bytes:
        """The encoded picture. Raises BadRowError."""
        plain = plain_name(name)
        path = self.find(plain)
        if path is None:
            raise BadRowError(RowCause.MISSING_IMAGE, f"no picture {plain!r} in {' or '.join(map(str, self.roots))}")
        picture = PictureFile(path.read_bytes())
        picture.name = plain
        return picture


@dataclass(slots=True)
class Draft:
    """A document in the making: segments in order, encoded pictures by their member names, `meta` of the source."""

    meta: dict[str, Any] = field(default_factory=dict)
    segments: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)

    def text(self, text: object, key: str, loss: bool = False) -> None:
        """Append a text without the space around it. key: its field in the data set. Raises BadRowError."""
        if not isinstance(text, str):
            raise BadRowError(Skip.BAD_SCHEMA, f"`{key}` must be a string, not {_short(text)}")
        if not text.strip():
            raise BadRowError(Skip.EMPTY_TEXT, f"`{key}` is empty")
        self.segments.append({"type": "text", "text": text.strip(), "loss": loss})

    def image(self, data: bytes, key: str, loss: bool = False) -> None:
        """Append a picture as it is encoded. key: its field in the data set.

        It is decoded in full, since a file that was cut off shows nothing of it in its header. Raises BadRowError.
        """
        try:
            load_image(data)
            kind = image_format(data)
        except ImageError as error:
            name = f" {data.name!r}" if isinstance(data, PictureFile) else ""
            raise BadRowError(image_skip(error).cause, f"`{key}`{name}: {error}") from error
        file = f"{len(self.images)}.{_EXTENSIONS.get(kind, kind.lower())}"
        self.images[file] = data
        self.segments.append({"type": "image", "file": file, "loss": loss})

    @property
    def document(self) -> dict[str, Any]:
        """The document in the schema of the shards."""
        return {"segments": self.segments, "meta": self.meta}


@cache
def _only_folder(root: Path) -> Path | None:
    """The subfolder of a folder that has just one."""
    folders = list(islice((path for path in root.iterdir() if path.is_dir()), 2)) if root.is_dir() else []
    return folders[0] if len(folders) == 1 else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
