"""How tokens are proposed, as a user says it."""

from __future__ import annotations

from dataclasses import dataclass

from hyperbagel.decoding.lookup import LookupSettings
from hyperbagel.decoding.policies import Fixed, Policy
from hyperbagel.decoding.proposal import TreeSettings


@dataclass(frozen=True)
class SpeculationSettings:
    """How tokens are proposed."""

    length: int = 6
    """Draft steps per round at most: the length of a chain or the depth of a tree."""
    min_confidence: float = 0.0
    """End a chain early, when the product of its draft probabilities falls below this (0: never)."""
    tree: TreeSettings | None = None
    """Propose this tree instead of a chain."""
    lookup: LookupSettings | None = None
    """Let the text propose what it said before, where it did; elsewhere the draft head proposes."""
    policy: Policy | None = None
    """What decides before every round whether to draft and how much; default: always, as said above."""

    def __post_init__(self) -> None:
        if self.length < 1 or not 0 <= self.min_confidence < 1:
            raise ValueError(f"need length >= 1 and 0 <= min_confidence < 1, got {self}")
        if self.tree is not None and self.min_confidence:
            raise ValueError("min_confidence ends chains; a tree spends its nodes by confidence already")
        if self.policy is not None and self.min_confidence:
            raise ValueError("min_confidence is what a policy decides; give one of the two")

    @property
    def decided_by(self) -> Policy:
        """The policy."""
        return Fixed(self.min_confidence) if self.policy is None else self.policy

    def scratch(self) -> int:
        """Uncommitted entries that a round needs, in the draft's or the target's cache."""
        looked_up = 0 if self.lookup is None else self.lookup.nodes + 1
        if self.tree is None:
            return max(self.length + 1, looked_up)
        return max(self.tree.nodes + 1, self.tree.width * self.length, looked_up)
