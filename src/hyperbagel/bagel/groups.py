"""Items of several sizes: a function is applied once per group of equal ones, and what comes of it put together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor

from hyperbagel.bagel.transfer import moved


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


def rows_of(values: Tensor, members: list[int]) -> Tensor:
    """Rows by number; all of them without the way of the numbers to the device."""
    return values if len(members) == len(values) else values[moved(torch.tensor(members), values.device)]


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Rows (n, ...) of any lengths as one tensor, zero at padding: (rows, longest, ...)."""
    if len({len(row) for row in rows}) == 1:
        return torch.stack(list(rows))
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
