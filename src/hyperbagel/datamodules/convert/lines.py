"""Lines of text files, whatever system they come from; what is not UTF-8 is refused with the remedy."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hyperbagel.datamodules.convert.errors import FormatError

_PIECE = 2**24
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


def text_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends: LF, CRLF, or CR alone.

    Nothing else ends a line: U+2028, U+0085 and form feeds belong to texts.
    """
    rest = b""
    while piece := file.readline(_PIECE):
        lines = (rest + piece).splitlines(keepends=True)  # of bytes, so at CR and LF only
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        yield from lines
    if rest:
        yield rest


def open_text(path: Path) -> BinaryIO:
    """A text file for reading bytes. Raises FileNotFoundError that names it, FormatError for an empty one or UTF-16."""
    file = open_data(path)
    problem = not_utf8(file.read(4096))
    if problem:
        file.close()
        raise FormatError(f"{path} {problem}")
    file.seek(0)
    return file


def open_data(path: Path) -> BinaryIO:
    """A file for reading bytes. Raises FileNotFoundError that names it, FormatError for an empty one."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.stat().st_size == 0:
        raise FormatError(f"{path} is empty")
    return path.open("rb")


def not_utf8(start: bytes) -> str | None:
    """What to tell of a text whose first bytes are two or four a character; None for others."""
    if start.startswith(_WIDE) or start.count(0) * 4 > len(start):
        return "is in UTF-16, not in UTF-8; save it as UTF-8, for example with `iconv -f UTF-16 -t UTF-8`"
    return None


def decode(data: bytes) -> str:
    """UTF-8 without its mark; bytes that are none are kept as Python keeps them in names of files."""
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
