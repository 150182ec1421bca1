"""Weights that are sharded over processes are gathered while the layer before them runs.

Halves of layers are units of their own (`training.sharding`), and PyTorch gathers one only when it is its turn, since
it does not know which comes next. Here that is known, for all layers of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def are_sharded(experts: Sequence[tuple[nn.Module, nn.Module | None]]) -> bool:
    """Whether layers, understanding and generation experts, gather their weights for use."""
    return not torch.compiler.is_compiling() and any(True for pair in experts[:1] for _ in _units(pair))


def ahead(layers: Sequence[tuple[nn.Module, nn.Module | None]], streams: Sequence[Tensor]) -> None:
    """Begin to gather what layers need for these streams, unless that was begun; nothing waits for it."""
    _begin(layers, [x.shape[1] for x in streams])


def _begin(layers: Sequence[tuple[nn.Module, nn.Module | None]], tokens: Sequence[int]) -> None:
    for pair in layers:
        used = [expert if count else None for expert, count in zip(pair, tokens, strict=True)]
        for unit in _units(used):
            unit.unshard(async_op=True)


def backwards(
    forward: Callable[..., Any], before: tuple[nn.Module, nn.Module | None], streams: Sequence[Tensor]
) -> Callable[..., Any]:
    """A layer's function that begins to gather the one before it when it is run again, in the backward pass: that one
    is then the next, if gradients go on to it. streams: what enters the layer."""
    wanted = any(x.requires_grad for x in streams)
    tokens = [x.shape[1] for x in streams]
    calls = iter((False,))

    def run(*arguments: Any) -> Any:
        if next(calls, True) and wanted:
            _begin([before], tokens)
        return forward(*arguments)

    return run


def _units(pair: Sequence[nn.Module | None]) -> Iterator[Any]:
    parts = (expert.get_submodule(name) for expert in pair if expert is not None for name in ("input", "output"))
    return (part for part in parts if hasattr(part, "unshard"))
