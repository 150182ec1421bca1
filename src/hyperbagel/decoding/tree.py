"""Dynamic draft trees as in EAGLE-2 (arXiv 2406.16858): the most probable continuations, whatever their shape."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.decoding.proposal import Proposal, ProposalSettings, TreeSettings
from hyperbagel.draft.head import DraftHead

__all__ = ["Levels", "TreeSettings", "grow_tree", "tree_mask"]

_ENDED = -100.0
"""Added to the log-probability of a token that ends the answer: the target says it unasked, and nothing follows."""


class Levels(Protocol):
    """Logits of a tree's levels."""

    def expand(self, token: Tensor, parent: Tensor) -> Tensor:
        """What follows on the nodes chosen for a level: (B, width, V').

        token: (B, width) their ids of the target; parent: (B, width) places of their parents among the `width` nodes of
        the level before (0 on the first one).
        """
        ...


class _Pool:
    """All nodes drafted so far: token, log-probability of the path, parent (0: the root) and depth, each (B, n)."""

    def __init__(self) -> None:
        self.columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.size = 0

    def add(self, token: Tensor, score: Tensor, parent: Tensor, depth: int) -> Tensor:
        """Append nodes; their numbers (n,), counted from 1."""
        self.columns.append((token, score, parent, torch.full_like(token, depth)))
        first = self.size + 1
        self.size += token.shape[1]
        return torch.arange(first, self.size + 1, device=token.device)

    def best(self, count: int, levels: int) -> Proposal:
        """The `count` most probable nodes. A node is less probable than its parent, so these form a tree."""
        token, score, parent, depth = (torch.cat(column, 1) for column in zip(*self.columns, strict=True))
        count = min(count, self.size)
        # Ties would be broken at random, and against a certain child's parent: shallow nodes come first.
        ranked = score - 1e-4 * depth
        kept = ranked.topk(count, dim=1).indices.sort(1).values
        number = torch.zeros(len(kept), self.size + 1, dtype=torch.long, device=kept.device)
        number.scatter_(1, kept + 1, torch.arange(1, count + 1, device=kept.device).expand(len(kept), -1))
        return Proposal(
            tokens=token.gather(1, kept),
            parents=number.gather(1, parent.gather(1, kept)),
            depth=depth.gather(1, kept),
            steps=levels,
            chances=score.gather(1, kept).exp(),
        )


def grow_tree(levels: Levels, first: Tensor, head: DraftHead, settings: ProposalSettings) -> Proposal:
    """Draft a tree of at most `length` levels, each of which expands its `width` most probable nodes.

    first: (B, V') logits of the first level; levels: gives those of all others. Raises ValueError without a tree.
    """
    if settings.tree is None:
        raise ValueError("no tree was asked for")
    pool, stop = _Pool(), torch.tensor(sorted(settings.stop), device=first.device, dtype=torch.long)
    width = min(settings.tree.width, head.lm_head.out_features)
    score, token = first.float().log_softmax(-1).topk(width)
    token = head.target_ids(token)
    score = score + _ENDED * torch.isin(token, stop)
    number = pool.add(token, score, torch.zeros_like(token), 1).expand_as(token)
    parent = torch.zeros_like(token)
    for level in range(1, settings.length):
        step, ids = levels.expand(token, parent).float().log_softmax(-1).topk(width)
        ids = head.target_ids(ids).flatten(1)
        scores = (score[..., None] + step).flatten(1) + _ENDED * torch.isin(ids, stop)
        numbers = pool.add(ids, scores, number.repeat_interleave(width, 1), level + 1)
        score, chosen = scores.topk(width)
        token, number, parent = ids.gather(1, chosen), numbers[chosen], chosen // width
    return pool.best(settings.tree.nodes, settings.length)


def tree_mask(parents: Tensor, depth: int) -> Tensor:
    """Who sees whom in a tree of root and M nodes: (B, M + 1, M + 1) bool, a node sees itself and its ancestors.

    parents: (B, M) node numbers, the root being 0; depth: of the deepest node.
    """
    nodes = parents.shape[1] + 1
    parents = F.pad(parents, (1, 0))
    seen = torch.eye(nodes, dtype=torch.bool, device=parents.device).repeat(len(parents), 1, 1)
    above = parents
    for _ in range(depth):
        seen.scatter_(2, above[..., None], True)
        above = parents.gather(1, above)
    return seen
