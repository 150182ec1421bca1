"""Pictures of a data set, decoded once to be sure of them, and put into documents."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperbagel.bagel.images import ImageError, image_format, load_image
from hyperbagel.datamodules.convert.errors import BadRowError, RowCause
from hyperbagel.datamodules.convert.names import PictureFile, clean_name
from hyperbagel.datamodules.skipped import Skip, image_skip
from hyperbagel.messages import shown

PICTURE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
})  # fmt: skip
"""Names that count as pictures when a folder is searched."""

UNREAD_SUFFIXES = frozenset({
    ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".psd", ".xcf", ".tga", ".ico", ".exr", ".hdr", ".qoi",
    ".dds", ".dib", ".pcx", ".eps", ".pdf", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
})  # fmt: skip
"""Names of pictures in formats that are not read."""

_EXTENSIONS = {"JPEG": "jpg"}


def missing_picture(text: Path) -> BadRowError:
    """Why a text file has no picture beside it: there is none, or it is of a format that is not read."""
    for suffix in sorted(UNREAD_SUFFIXES):
        for path in (text.with_suffix(suffix), text.with_suffix(suffix.upper())):
            if os.path.isfile(path):
                message = f"{path.name} is of a format that is not read here; convert it to PNG or JPEG"
                return BadRowError(Skip.UNREADABLE_IMAGE, message)
    return BadRowError(RowCause.MISSING_IMAGE, "there is no picture of the same name")


@dataclass(slots=True)
class Composition:
    """A document in the making: segments in order, encoded pictures by their member names, `meta` of the source."""

    meta: dict[str, Any] = field(default_factory=dict)
    segments: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)

    def text(self, text: object, key: str, loss: bool = False) -> None:
        """Append a text without the space around it. key: its field in the data set. Raises BadRowError."""
        if not isinstance(text, str):
            raise BadRowError(Skip.BAD_SCHEMA, f"`{key}` must be a string, not {shown(text)}")
        if not text.strip():
            raise BadRowError(Skip.EMPTY_TEXT, f"`{key}` is empty")
        if "\0" in text:
            raise BadRowError(Skip.BAD_SCHEMA, f"`{key}` holds a NUL character, which no text has")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"`{key}` is not UTF-8 at character {error.start}; save the file as UTF-8"
            raise BadRowError(RowCause.NOT_UTF8, message) from error
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
        """The document in the schema of the shards; `meta` shows bytes of names that are no UTF-8 as escapes."""
        meta = {
            clean_name(key): clean_name(value) if isinstance(value, str) else value for key, value in self.meta.items()
        }
        return {"segments": self.segments, "meta": meta}
