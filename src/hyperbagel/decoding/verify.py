"""Verifies proposed tokens: pure functions that keep the target's distribution, or its greedy choice, exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Randomness: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""Where draws come from: a generator for all documents, or one for each; None is PyTorch's own."""


def walk(tokens: Sequence[int], parents: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """The nodes of a tree that the target's own choices pass through, from the root (0) on.

    tokens: of nodes 1, 2, ...; parents: their parents, which come before them; chosen: what the target chooses after
    each node, the root first. Its choice after the last node of the path is the next token. Exact for greedy choices
    and for choices drawn from the target, as the tree does not depend on them.

    Examples:
        >>> walk(tokens=[7, 8, 9], parents=[0, 0, 2], chosen=[8, 1, 9, 4])  # the target goes by 8 to 9
        [0, 2, 3]
    """
    path, node = [0], 0
    for child, (token, parent) in enumerate(zip(tokens, parents, strict=True), start=1):
        if parent == node and token == chosen[node]:
            path.append(child)
            node = child
    return path


def sample_chain(tokens: Tensor, q: Tensor, p: Tensor, generator: Randomness = None) -> tuple[Tensor, Tensor]:
    """Speculative sampling (arXiv 2211.17192): number of accepted tokens (B,) and the token after them (B,).

    tokens: (B, K) drawn from the draft's distributions q (B, K, V); p: (B, K + 1, V) the target's. Token i is accepted
    with probability min(1, p / q); after the first rejected one the next token comes from max(p - q, 0), normalised.
    What results is distributed as p.

    Examples:
        >>> p = torch.eye(3)[None, [1, 2]]  # the target is sure of 1, then of 2
        >>> accepted, following = sample_chain(torch.tensor([[1]]), torch.eye(3)[None, [1]], p)
        >>> accepted, following
        (tensor([1]), tensor([2]))
    """
    drawn = tokens[..., None]
    kept = _uniform(tokens, generator) * q.gather(-1, drawn)[..., 0] < p[:, :-1].gather(-1, drawn)[..., 0]
    accepted = kept.long().cumprod(-1).sum(-1)
    rows = torch.arange(len(p), device=p.device)
    there = p[rows, accepted]
    padded = torch.cat([q, torch.zeros_like(q[:, :1])], dim=1)  # nothing was proposed after the last token
    rest = (there - padded[rows, accepted]).clamp(min=0)
    # Rounding can leave nothing of p - q where both are equal.
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, there)
    return accepted, draw(rest, generator)


def _uniform(like: Tensor, generator: Randomness) -> Tensor:
    """Numbers in [0, 1) in the shape and on the device of `like` (B, ...)."""
    if isinstance(generator, Sequence):
        return torch.stack([_uniform(row, own) for row, own in zip(like, generator, strict=True)])
    return torch.rand(like.shape, generator=generator, device=generator.device if generator else like.device).to(
        like.device
    )


def draw(weights: Tensor, generator: Randomness = None) -> Tensor:
    """Tokens (...) drawn in proportion to weights (..., V)."""
    if isinstance(generator, Sequence):
        return torch.stack([draw(row, own) for row, own in zip(weights, generator, strict=True)])
    flat = weights.reshape(-1, weights.shape[-1])
    where = generator.device if generator is not None else flat.device
    drawn = torch.multinomial(flat.to(where), 1, generator=generator)[:, 0].to(flat.device)
    return drawn.view(weights.shape[:-1])
