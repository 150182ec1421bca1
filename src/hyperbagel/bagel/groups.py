"""Applies a function once per group of items of equal size, and returns the results in the order of the items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor


def in_groups(sizes: Sequence[Hashable], work: Callable[[list[int]], Iterable[Tensor]]) -> list[Tensor]:
    """What `work` makes of each item, in their order; it is called once per size, with the indices of its items."""
    members: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, size in enumerate(sizes):
        members[size].append(index)
    results = [torch.empty(0)] * len(sizes)
    for indices in members.values():
        for index, result in zip(indices, work(indices), strict=True):
            results[index] = result
    return results
