"""Skipped samples: counted by cause and reported, and too many of them stop a run."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from hyperbagel.bagel.images import ImageError, ImageTooLargeError
from hyperbagel.messages import clip

log = logging.getLogger(__name__)


class Skip(StrEnum):
    """Why a sample was skipped; the names under which counts are logged."""

    BAD_JSON = "bad_json"
    BAD_SCHEMA = "bad_schema"
    DAMAGED_TAR = "damaged_tar"
    DOTTED_KEY = "dotted_key"
    DUPLICATE_KEY = "duplicate_key"
    EMPTY_TEXT = "empty_text"
    IMAGE_TOO_LARGE = "image_too_large"
    MISSING_MEMBER = "missing_member"
    NO_LOSS = "no_loss"
    NOTHING_TO_LEARN = "nothing_to_learn"
    TOO_LONG = "too_long"
    UNREADABLE_IMAGE = "unreadable_image"
    UNSAFE_NAME = "unsafe_name"


class SkippedSampleError(ValueError):
    """A sample that cannot be used. cause: the count it adds to."""

    def __init__(self, cause: Skip, message: str) -> None:
        super().__init__(message)
        self.cause = cause

    def __reduce__(self) -> tuple[type[SkippedSampleError], tuple[Skip, str]]:
        return type(self), (self.cause, str(self))


def image_skip(error: ImageError) -> SkippedSampleError:
    """An unusable picture as the reason to skip its sample."""
    cause = Skip.IMAGE_TOO_LARGE if isinstance(error, ImageTooLargeError) else Skip.UNREADABLE_IMAGE
    return SkippedSampleError(cause, clip(error))


class TooManySkippedError(ValueError):
    """More samples were skipped than the limit allows."""


@dataclass(frozen=True, slots=True)
class SkipRecord:
    """One skipped sample. sample: where it is (source, shard and key); reason: what was wrong with it."""

    cause: Skip
    sample: str
    reason: str


class SkipLog:
    """Counts distinct skipped samples by cause in the main process, warns of each, and stops above a limit.

    Good documents in which the stage has nothing to learn are no matter for the limit: of them the first is told, and
    all that this run met are counted, again in each epoch.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.unlearnt = 0
        self._samples: dict[str, Skip] = {}

    @property
    def counts(self) -> Mapping[Skip, int]:
        """Number of distinct samples skipped by cause."""
        counts = Counter(self._samples.values())
        return counts + Counter({Skip.NOTHING_TO_LEARN: self.unlearnt})

    def add(self, records: Iterable[SkipRecord]) -> None:
        """Take over records; a sample met again in a later epoch is not counted again.

        Raises TooManySkippedError above the limit.
        """
        for record in records:
            if record.cause == Skip.NOTHING_TO_LEARN:
                if not self.unlearnt:
                    log.warning(
                        "left out %s (%s): %s; others are only counted", record.sample, record.cause, record.reason
                    )
                self.unlearnt += 1
                continue
            if record.sample in self._samples:
                continue
            self._samples[record.sample] = record.cause
            log.warning("skipped %s (%s): %s", record.sample, record.cause, record.reason)
            if len(self._samples) > self.limit:
                causes = ", ".join(f"{count} {cause}" for cause, count in sorted(self.counts.items()))
                raise TooManySkippedError(
                    f"skipped {len(self._samples)} samples ({causes}), over the limit of {self.limit}; the last was "
                    f"{record.sample}: {record.reason}. Repair the data, or raise `max_skipped`"
                )

    def state_dict(self) -> dict[str, str]:
        """Cause by sample."""
        return {sample: str(cause) for sample, cause in self._samples.items()}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Continue counting from an earlier run."""
        self._samples = {sample: Skip(cause) for sample, cause in state.items()} | self._samples
