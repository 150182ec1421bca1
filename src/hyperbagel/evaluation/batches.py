"""What is measured in batches, without padding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TypeVar

_Key = TypeVar("_Key", int, tuple[int, ...])


def batches_of_equals(keys: Sequence[_Key], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches whose entries have equal keys (such as text lengths: no padding), in order of the keys."""
    groups: dict[_Key, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    for _, group in sorted(groups.items()):
        yield from (group[start : start + batch_size] for start in range(0, len(group), batch_size))
