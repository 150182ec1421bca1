"""Members of a tar file with their places, damaged files included.

A reader that only goes forward loses everything after the first damaged byte. Here every member is found by its own
header, so damage costs the samples it hits and no others.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_BLOCK = tarfile.BLOCKSIZE
_MAGIC = b"ustar"
_MAGIC_OFFSET = 257
_SEARCH_BYTES = 2**20
_MAX_NAME_BYTES = 2**20  # macOS puts whole attributes before the name
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file in a tar. start: byte at which its header begins; offset, size: where its content is.

    unread: why there is no content to read; empty for regular files.
    """

    name: str
    start: int
    offset: int
    size: int
    unread: str = ""

    @property
    def end(self) -> int:
        """First byte after the content and its padding."""
        return self.offset + -(-self.size // _BLOCK) * _BLOCK


class TarContent(io.RawIOBase):
    """A member's content as a file of its own, without reading it into memory. file: the tar, shared."""

    def __init__(self, file: BinaryIO, member: TarMember) -> None:
        self._file, self._member, self._position = file, member, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._member.size}[whence]
        self._position = max(0, begin + offset)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the buffer; 0 at the end of the member."""
        self._file.seek(self._member.offset + self._position)
        data = self._file.read(max(0, min(len(buffer), self._member.size - self._position)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


@dataclass(frozen=True, slots=True)
class TarDamage:
    """Bytes from start to end that no header accounts for."""

    start: int
    end: int


def scan_tar(file: BinaryIO, size: int) -> Iterator[TarMember | TarDamage]:
    """All files, links among them, of the first `size` bytes of a seekable file, and the damaged places between them.

    A file that stops without the end marker of a tar was cut off, even at the seam of two members, and so counts as
    damaged. Devices and folders are passed over. Nothing is unpacked and no content is read.
    """
    position = content = 0
    start, zeros, long_name = None, None, None
    while position + _BLOCK <= size:
        file.seek(position)
        header = file.read(_BLOCK)
        if header == bytes(_BLOCK):  # the end marker, if nothing comes after it
            zeros = position if zeros is None else zeros
            position += _BLOCK
            continue
        if zeros is not None:
            yield TarDamage(zeros, position)
            zeros = None
        info = _parse_header(header)
        offset = position + _BLOCK
        stored = _stored_size(info) if info else 0
        if info is None or offset + stored > size:
            # Deleted bytes pull the next header into what should be the content of the last member.
            found = _find_header(file, position + 1 if info else content, size)
            yield TarDamage(position, found)
            if found == size:
                return
            position, content, start, long_name = found, found + 1, None, None
            continue
        if info.type in (*_EXTENDED, tarfile.GNUTYPE_LONGNAME):
            start, long_name = position if start is None else start, _long_name(file, info, offset) or long_name
        elif info.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            if info.isreg() or info.type in _LINKS:
                begin = position if start is None else start
                yield TarMember(long_name or info.name, begin, offset, stored, _unread(info))
            start, long_name = None, None
        content, position = offset, offset + -(-stored // _BLOCK) * _BLOCK
    if zeros is None:
        yield TarDamage(min(position, size), size)


def _parse_header(header: bytes) -> tarfile.TarInfo | None:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None
    return info if info.size >= 0 else None


def _unread(info: tarfile.TarInfo) -> str:
    """Why a member has no content of its own; empty if it has."""
    if info.type in _LINKS:
        return "is a link, which is not followed; make the tar with --dereference --hard-dereference"
    return "is a sparse file; make the tar without --sparse" if info.type == tarfile.GNUTYPE_SPARSE else ""


def _stored_size(info: tarfile.TarInfo) -> int:
    """Links and the like may state a size but have no content."""
    named = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
    stored = info.isreg() or info.type in named or info.type not in tarfile.SUPPORTED_TYPES
    return info.size if stored else 0


def _long_name(file: BinaryIO, info: tarfile.TarInfo, offset: int) -> str | None:
    """The name that an extended header gives to the member after it."""
    file.seek(offset)
    data = file.read(min(info.size, _MAX_NAME_BYTES))
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    while data:  # records "length key=value\n", the length counting all of it
        length, _, rest = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            return None
        key, _, value = rest[: int(length) - len(length) - 1].rstrip(b"\n").partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return None


def _find_header(file: BinaryIO, position: int, size: int) -> int:
    """First byte from `position` on where a valid header begins; `size` when there is none."""
    while position + _BLOCK <= size:
        file.seek(position)
        chunk = file.read(min(_SEARCH_BYTES, size - position))
        found = chunk.find(_MAGIC, _MAGIC_OFFSET)
        while found >= 0 and found - _MAGIC_OFFSET + _BLOCK <= len(chunk):
            begin = found - _MAGIC_OFFSET
            if _parse_header(chunk[begin : begin + _BLOCK]) is not None:
                return position + begin
            found = chunk.find(_MAGIC, found + 1)
        if len(chunk) < _SEARCH_BYTES:
            break
        position += len(chunk) - _BLOCK + 1
    return size
