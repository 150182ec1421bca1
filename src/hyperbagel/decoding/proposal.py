"""What a draft proposes, and what it is told to propose."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.verify import Randomness


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


@dataclass
class Proposal:
    """Proposed tokens. tokens: (B, M) ids of the target; probabilities: (B, M, V) what they were drawn from, None for
    fixed proposals; parents: (B, M) node numbers, the root being 0, or None for a chain; depth: (B, M), likewise;
    steps: tokens of the longest path; chances: (B, M) of a draft's tree, how likely all tokens up to a node are."""

    tokens: Tensor
    probabilities: Tensor | None = None
    parents: Tensor | None = None
    depth: Tensor | None = None
    steps: int = 0
    chances: Tensor | None = None


@dataclass(frozen=True)
class ProposalSettings:
    """How tokens are proposed in a round. length: most tokens of a path; min_confidence: go on only while the product
    of their draft probabilities is at least this (of the most confident document); stop: ids that end an answer,
    behind which nothing is proposed; decoding: temperature and top-p; generator: of the draws; tree: propose it
    instead of a chain.
    """

    length: int
    min_confidence: float
    stop: Collection[int]
    decoding: DecodingSettings
    generator: Randomness
    tree: TreeSettings | None = None

    @property
    def greedy(self) -> bool:
        """Whether proposals are the draft's likeliest tokens. Trees always are."""
        return self.decoding.temperature == 0


def stack_chain(tokens: Sequence[Tensor], probabilities: Sequence[Tensor]) -> Proposal | None:
    """A chain of tokens, each (B, 1), with what they were drawn from, each (B, 1, V); None for no tokens."""
    if not tokens:
        return None
    drawn = torch.cat(list(probabilities), 1) if probabilities else None
    return Proposal(torch.cat(list(tokens), 1), drawn, steps=len(tokens))
