"""The one schema of all training data: a sample is an interleaved document.

A sample has a member `json` and its picture files:

    {"segments": [{"type": "text", "text": "a red circle", "loss": false},
                  {"type": "image", "file": "0.png", "loss": true}],
     "meta": {"anything": "a source wants to keep"}}

`loss` marks what the model has to produce: answers and pictures to be generated. It may be left out (false).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from hyperbagel.datamodules.skipped import Skip, SkippedSampleError
from hyperbagel.messages import shown

MAX_JSON_BYTES = 16 * 2**20
"""Longest `json` member that is parsed."""

_SAFE_NAME = re.compile(r"[^/\\\x00-\x1f\ud800-\udfff]{1,255}")
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
_SYSTEM_FOLDERS = frozenset({"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"})
_FIELDS = {"text": {"type", "text", "loss"}, "image": {"type", "file", "loss"}}


@dataclass(frozen=True, slots=True)
class TextPart:
    """A text of a document. loss: whether the model learns to write it."""

    text: str
    loss: bool = False


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture of a document by its member name. loss: whether the model learns to draw it."""

    file: str
    loss: bool = False


Part: TypeAlias = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class InterleavedDocument:
    """A document in memory: its parts in order and free-form `meta`.

    Examples:
        >>> from hyperbagel.datamodules.documents import TextPart
        >>> InterleavedDocument((TextPart("hello", loss=True),)).generates
        False
    """

    parts: tuple[Part, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The pictures in order."""
        return tuple(part for part in self.parts if isinstance(part, ImagePart))

    @property
    def generates(self) -> bool:
        """Whether a picture is to be generated; if not, the document is for understanding only."""
        return any(part.loss for part in self.images)

    def content(self) -> dict[str, Any]:
        """As it is written into the member `json`."""
        kinds = {TextPart: "text", ImagePart: "image"}
        return {"segments": [{"type": kinds[type(part)], **asdict(part)} for part in self.parts], "meta": self.meta}


class DocumentError(SkippedSampleError):
    """A document breaks the schema; `cause` says how, the message says where."""


def parse_document(
    data: bytes | str | Mapping[str, Any], files: Collection[str], strict: bool = False
) -> InterleavedDocument:
    """Read and check a document.

    data: the `json` member, or its parsed content; files: names of the sample's other members;
    strict: also refuse unknown fields, which are most likely misspelt (for writers; readers let them pass).
    Raises DocumentError.
    """
    content = _parsed(data) if isinstance(data, bytes | str) else data
    if not isinstance(content, Mapping):
        raise DocumentError(Skip.BAD_SCHEMA, f"a document is an object with `segments`, not {shown(content)}")
    segments, meta = content.get("segments"), content.get("meta", {})
    if not isinstance(segments, list) or not segments:
        raise DocumentError(
            Skip.BAD_SCHEMA, f"`segments` must be a list of at least one segment, not {shown(segments)}"
        )
    if not isinstance(meta, dict):
        raise DocumentError(Skip.BAD_SCHEMA, f"`meta` must be an object, not {shown(meta)}")
    if strict and (unknown := content.keys() - {"segments", "meta"}):
        raise DocumentError(Skip.BAD_SCHEMA, f"unknown field {sorted(unknown)[0]!r}; put it into `meta`")
    parts = tuple(_part(segment, f"segments[{i}]", files, strict) for i, segment in enumerate(segments))
    return InterleavedDocument(parts, meta)


def _parsed(data: bytes | str) -> object:
    if len(data) > MAX_JSON_BYTES:
        raise DocumentError(Skip.BAD_JSON, f"{len(data)} bytes of JSON are over the limit of {MAX_JSON_BYTES}")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DocumentError(Skip.BAD_JSON, f"not readable as JSON: {error}") from error


def _part(segment: object, where: str, files: Collection[str], strict: bool) -> Part:
    """One checked segment; where: its place for error messages."""
    if not isinstance(segment, Mapping):
        raise DocumentError(Skip.BAD_SCHEMA, f"{where} must be an object, not {shown(segment)}")
    kind, loss = segment.get("type"), segment.get("loss", False)
    if kind not in ("text", "image"):
        raise DocumentError(Skip.BAD_SCHEMA, f'{where}: `type` must be "text" or "image", not {shown(kind)}')
    if not isinstance(loss, bool):
        raise DocumentError(Skip.BAD_SCHEMA, f"{where}: `loss` must be true or false, not {shown(loss)}")
    if strict and (unknown := segment.keys() - _FIELDS[kind]):
        raise DocumentError(
            Skip.BAD_SCHEMA, f"{where}: unknown field {sorted(unknown)[0]!r} of a segment of type {kind}"
        )
    return TextPart(_text(segment.get("text"), where), loss) if kind == "text" else _image(segment, where, files, loss)


def _text(text: object, where: str) -> str:
    if not isinstance(text, str):
        raise DocumentError(Skip.BAD_SCHEMA, f"{where}: `text` must be a string, not {shown(text)}")
    if not text.strip():
        raise DocumentError(Skip.EMPTY_TEXT, f"{where}: `text` is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DocumentError(Skip.BAD_JSON, f"{where}: `text` is not valid Unicode: {error}") from error
    return text


def _image(segment: Mapping[str, Any], where: str, files: Collection[str], loss: bool) -> ImagePart:
    file = segment.get("file")
    if not isinstance(file, str) or not file:
        raise DocumentError(Skip.BAD_SCHEMA, f"{where}: `file` must name a member, not {shown(file)}")
    if not safe_name(file):
        raise DocumentError(Skip.UNSAFE_NAME, f"{where}: {file!r} is not a plain file name")
    file = file if file in files else file.lower()  # shards are read with their endings in lower case
    if file not in files:
        raise DocumentError(Skip.MISSING_MEMBER, f"{where}: the sample has no member {file!r}, only {sorted(files)}")
    return ImagePart(file, loss)


def safe_name(name: str) -> bool:
    """Whether a name stays inside its folder wherever it is unpacked: one plain component, not `.` or `..`."""
    return _SAFE_NAME.fullmatch(name) is not None and name.strip(".") != ""


def system_name(name: str) -> bool:
    """Whether a file, by its name with folders, is one that an operating system or an archiver adds to those of people:
    hidden (`._a.png`, `.DS_Store`), `Thumbs.db`, in a folder such as `__MACOSX`, or of extended headers.
    """
    *folders, base = name.lower().split("/")
    if base.startswith(".") or base in _SYSTEM_FILES:
        return True
    return any(folder in _SYSTEM_FOLDERS or folder.startswith("paxheader") for folder in folders)


def safe_key(key: str) -> bool:
    """Whether a sample's key, which may have folders in it, stays inside the folder where it is unpacked."""
    return all(safe_name(part) for part in key.split("/"))
