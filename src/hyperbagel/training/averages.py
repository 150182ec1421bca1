"""Exponential moving averages of what trains."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from hyperbagel.bagel.branch import GenerationBranch


@torch.no_grad()
def move_towards(averages: Iterable[Tensor], values: Iterable[Tensor], share: float) -> None:
    """averages <- (1 - share) * averages + share * values, in place, each on its average's device and in its type."""
    averages = list(averages)
    torch._foreach_lerp_(averages, [v.detach().to(a) for a, v in zip(averages, values, strict=True)], share)


def ema_copy(branch: GenerationBranch) -> GenerationBranch:
    """A frozen branch for `update_ema`; weights that do not train are shared."""
    shared = {id(p): p for p in branch.parameters() if not p.requires_grad}
    return copy.deepcopy(branch, shared).requires_grad_(False)


def update_ema(average: GenerationBranch, branch: GenerationBranch, decay: float) -> None:
    """average <- decay * average + (1 - decay) * branch, for what trains.

    Examples:
        >>> average, student = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        >>> _ = average.weight.data.fill_(0.0), student.weight.data.fill_(1.0)
        >>> update_ema(average, student, decay=0.9)
        >>> round(average.weight.item(), 4)
        0.1
    """
    pairs = [(a, b) for a, b in zip(average.parameters(), branch.parameters(), strict=True) if b.requires_grad]
    move_towards((a for a, _ in pairs), (b for _, b in pairs), 1 - decay)


@contextmanager
def averaged_weights(trainer: Any, module: Any) -> Iterator[None]:
    """All moving averages that callbacks of a trainer keep (`averaged`) in place of the weights of its module."""
    with ExitStack() as stack:
        for callback in trainer.callbacks:
            if callable(averaged := getattr(callback, "averaged", None)):
                stack.enter_context(averaged(module))
        yield
