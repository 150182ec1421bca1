"""Settings that all converters share."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class ConvertOptions:
    """How a conversion runs.

    Args:
        shard_size: Rows of the data set that go into one shard.
        workers: Processes that convert at the same time; 0 takes one for each available core, 1 converts in the main
            process. The result does not depend on it.
        limit: Convert only the first rows, to try things out.
        resume: Continue a conversion into the same folder that was stopped; finished shards are kept as they are.
            Without it, a folder that has a conversion in it is refused.
        max_skipped: Largest share of bad rows, above which the conversion stops with an error. It is looked at from
            1000 rows on and at the end.

    Examples:
        >>> ConvertOptions(workers=2, limit=100).processes
        2
        >>> ConvertOptions(max_skipped=2)
        Traceback (most recent call last):
        ...
        ValueError: max_skipped is a share from 0 to 1, got 2
    """

    shard_size: int = 1000
    workers: int = 0
    limit: int | None = None
    resume: bool = True
    max_skipped: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {self.shard_size}")
        if self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}; leave it out to convert everything")
        if not 0 <= self.max_skipped <= 1:
            raise ValueError(f"max_skipped is a share from 0 to 1, got {self.max_skipped}")

    @property
    def processes(self) -> int:
        """Number of processes that convert."""
        if self.workers:
            return self.workers
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


DEFAULT_OPTIONS = ConvertOptions()
"""All defaults."""
