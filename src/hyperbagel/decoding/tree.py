"""Dynamic draft trees as in EAGLE-2 (arXiv 2406.16858): the most probable continuations, whatever their shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.decoding.drafter import Drafter, DraftState, Proposal
from hyperbagel.decoding.fused import RopeTable


@dataclass(frozen=True)
class TreeSettings:
    """The tree of proposed tokens."""

    width: int = 4
    """Nodes expanded per level, and children of each."""
    nodes: int = 16
    """Tokens that are verified in the end."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.nodes < 1:
            raise ValueError(f"a draft tree needs width >= 1 and nodes >= 1, got {self}")


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

    def best(self, count: int) -> Proposal:
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
        )


def grow_tree(
    drafter: Drafter,
    state: DraftState,
    start: tuple[Tensor, Tensor],
    table: RopeTable,
    settings: TreeSettings,
    depth: int,
) -> Proposal:
    """Draft a tree of at most `depth` levels. start: feature (B, 1, D) and rope position (B, 1) of the last true row.

    Each level expands its `width` most probable nodes; each expanded node sees the true rows, its ancestors and itself.
    """
    hidden, position = start
    head, pool = drafter.head, _Pool()
    width = min(settings.width, head.lm_head.out_features)
    score, token = drafter.logits(hidden)[:, 0].float().log_softmax(-1).topk(width)
    token = head.target_ids(token)
    number = pool.add(token, score, torch.zeros_like(token), 1).expand_as(token)
    hidden = hidden.expand(-1, width, -1)
    ancestors = torch.zeros(len(token), width, 0, dtype=torch.bool, device=token.device)
    own = torch.eye(width, dtype=torch.bool, device=token.device).expand(len(token), -1, -1)
    for level in range(1, depth):
        ahead = ancestors.shape[-1]
        ancestors = torch.cat([ancestors, own], dim=-1)
        mask = state.layers.place(width, ahead, ancestors)
        rope = table.at((position + level).expand(-1, width))
        hidden = drafter.step(F.embedding(token, drafter.embed), hidden, rope, mask, state.layers)
        step, ids = drafter.logits(hidden).float().log_softmax(-1).topk(width)
        scores = (score[..., None] + step).flatten(1)
        ids = head.target_ids(ids).flatten(1)
        numbers = pool.add(ids, scores, number.repeat_interleave(width, 1), level + 1)
        score, chosen = scores.topk(width)
        token, number = ids.gather(1, chosen), numbers[chosen]
        parent = (chosen // width)[..., None]
        hidden = hidden.gather(1, parent.expand(-1, -1, hidden.shape[-1]))
        ancestors = ancestors.gather(1, parent.expand(-1, -1, ancestors.shape[-1]))
    return pool.best(settings.nodes)


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
