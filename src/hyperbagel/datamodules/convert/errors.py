"""Errors of conversions: those of a row, which are counted, and those of a whole data set, which stop the work."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

from hyperbagel.datamodules.skipped import Skip


class RowCause(StrEnum):
    """Why a row of a data set is left out, beyond what can be wrong with any sample (`Skip`).

    Examples:
        >>> str(RowCause.MISSING_CAPTION)
        'missing_caption'
    """

    BAD_TURNS = "bad_turns"
    IMAGE_COUNT = "image_count"
    INCOMPLETE_ROUND = "incomplete_round"
    MISSING_CAPTION = "missing_caption"
    MISSING_IMAGE = "missing_image"
    NO_ANNOTATION = "no_annotation"
    NOT_DOWNLOADED = "not_downloaded"
    NOT_UTF8 = "not_utf8"
    UNKNOWN_SPEAKER = "unknown_speaker"


Cause: TypeAlias = RowCause | Skip

EXPECTED: frozenset[str] = frozenset({RowCause.NOT_DOWNLOADED, RowCause.NO_ANNOTATION})
"""Causes that come of taking a part of a data set and do not count towards `max_skipped`."""


class BadRowError(ValueError):
    """A row that cannot become a document. cause: the count it adds to.

    Examples:
        >>> from hyperbagel.datamodules.convert import RowCause
        >>> str(BadRowError(RowCause.MISSING_IMAGE, "there is no a.png").cause)
        'missing_image'
    """

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class FormatError(ValueError):
    """A data set is not of the expected format; the message names the file, the place and the remedy.

    Examples:
        >>> raise FormatError("captions.csv, line 1: no key 'text'; set `fields.text`")
        Traceback (most recent call last):
        ...
        hyperbagel.datamodules.convert.errors.FormatError: captions.csv, line 1: no key 'text'; set `fields.text`
    """


class TooManyBadRowsError(ValueError):
    """A larger share of the rows is unusable than `max_skipped` allows.

    Examples:
        >>> raise TooManyBadRowsError("2 of 3 rows are unusable")
        Traceback (most recent call last):
        ...
        hyperbagel.datamodules.convert.errors.TooManyBadRowsError: 2 of 3 rows are unusable
    """
