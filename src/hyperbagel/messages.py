"""Messages for people: one short line of characters that every terminal shows."""

from __future__ import annotations

import re

LIMIT = 300
"""Longest message in characters."""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_BYTES = re.compile(r"""\bb(?P<mark>['"])(?:\\.|(?!(?P=mark)).){17,}?(?P=mark)""", re.DOTALL)
_GAP = " ... "


def clip(text: object, limit: int = LIMIT) -> str:
    """A text on one line of at most `limit` characters, the middle left out.

    It has no addresses of objects, which differ from run to run, and no contents of files written as `b'...'`. Control
    characters, and halves of characters as in names of files in another encoding, are escaped.
    """
    text = _BYTES.sub("b'...'", _ADDRESS.sub("", str(text)))
    line = " ".join(part.strip() for part in text.splitlines())
    line = "".join(map(_visible, line)) if not (line.isascii() and line.isprintable()) else line
    if len(line) <= limit:
        return line
    head = (limit - len(_GAP)) * 2 // 3
    return line[:head] + _GAP + line[len(line) - (limit - len(_GAP) - head) :]


def shown(value: object, limit: int = 60) -> str:
    """A value as a message shows it: texts and numbers themselves, of anything larger what and how much it is."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if value is None or isinstance(value, str | int | float):
        return clip(repr(value[:1000] if isinstance(value, str) else value), limit)
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _visible(character: str) -> str:
    if character.isprintable() or character == "\u3000":
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as Python reads names of files
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
