"""Messages are short, on one line, the same in every run, and can be printed anywhere."""

import pytest

from hyperbagel.messages import LIMIT, clip, shown


@pytest.mark.parametrize(
    "text,expected",
    [
        ("a plain message: ça va, 图", "a plain message: ça va, 图"),
        ("first\n  second\u2028third\r\n", "first second third"),
        ("caf\udce9.png: no picture", "caf\\xe9.png: no picture"),
        ("bell \x07 and \ud800", "bell \\x07 and \\ud800"),
        ("cannot identify <_io.BytesIO object at 0x7f9152df7790>", "cannot identify <_io.BytesIO object>"),
        (f"not {b'PNG' + bytes(40)!r}!", "not b'...'!"),
        ("not " + repr(b'it\'s "quoted" and longer') + "!", "not b'...'!"),
        ("begins with b'PK'", "begins with b'PK'"),
    ],
)
def test_what_cannot_be_shown_is_not(text: str, expected: str):
    assert clip(text) == expected


def test_long_messages_keep_both_ends():
    message = clip("file.csv, line 3: " + "x" * 5000 + "; use commas")
    assert len(message) == LIMIT and message.startswith("file.csv, line 3: x") and message.endswith("x; use commas")
    assert clip("x" * LIMIT) == "x" * LIMIT


@pytest.mark.parametrize(
    "value,expected",
    [
        (bytes(70_000), "70000 bytes"),
        ({"bytes": bytes(70_000)}, "a dict of 1"),
        ([1, 2], "a list of 2"),
        (12, "12"),
        (None, "None"),
        ("a\nb", "'a\\nb'"),
        (object(), "a object"),
    ],
)
def test_values_are_described(value: object, expected: str):
    assert shown(value) == expected


def test_long_values_are_cut():
    assert len(shown("x" * 10**6)) == 60 == len(shown(10**100))
