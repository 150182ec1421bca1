"""Settings of a draft head: the Hyper-Bagel head with each of its parts switchable, a parallel one, or EAGLE-3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hyperbagel.bagel.config import LLMConfig


@dataclass(frozen=True)
class DraftConfig:
    """What a draft head is made of; the defaults are Hyper-Bagel's, each field an ablation of its Table 1.

    Examples:
        >>> eagle3 = DraftConfig(kind="eagle3", layers=1)
        >>> eagle3.attends, DraftConfig().attends
        (False, True)
    """

    kind: Literal["hyper", "parallel", "eagle3"] = "hyper"
    """"hyper" fuses token embedding and feature by a linear layer before layers of the target's own architecture;
    "parallel" is the same, but proposes all tokens in one pass, from learned embeddings of the places ahead;
    "eagle3" lets the first layer's attention read both (and has neither meta queries nor `Dec`)."""
    layers: int = 2
    """N decoder layers run at every draft step (EAGLE-3 has one)."""
    queries: int = 3
    """Q features a token is summarised by."""
    meta_queries: bool = True
    """Let learned queries attend to all target layers of a token; without them the Q levels alone are used."""
    decoder: bool = True
    """Whether there is the decoder layer `Dec` over the sequence of these features."""
    zero_init: bool = True
    """Start the last projections of cross-attention and `Dec`, fc1 and fc2 at zero."""
    decoder_size: int | None = None
    """Width of `Dec`'s MLP, default the target's."""
    levels: tuple[int, ...] | None = None
    """Which residual streams the skips carry, default EAGLE-3's (see `feature_levels`)."""
    ahead: int = 16
    """Tokens that a parallel head proposes at most; the others have no such limit."""

    def __post_init__(self) -> None:
        if min(self.layers, self.queries, self.ahead) < 1:
            raise ValueError(f"a draft head needs layers >= 1, queries >= 1 and ahead >= 1, got {self}")
        if self.levels is not None:
            object.__setattr__(self, "levels", tuple(self.levels))  # JSON and YAML give lists
            if len(self.levels) != self.queries:
                raise ValueError(f"levels {self.levels} must name one residual stream a query ({self.queries})")

    @property
    def attends(self) -> bool:
        """Whether there is cross-attention over the target's layers."""
        return self.kind != "eagle3" and self.meta_queries

    @property
    def decodes(self) -> bool:
        """Whether there is a `Dec` layer."""
        return self.kind != "eagle3" and self.decoder

    def level_entries(self, llm: LLMConfig) -> tuple[int, ...]:
        """The residual streams of the skips, as entries of `MoTOutput.layers`. Raises ValueError for one beyond
        them.
        """
        levels = self.levels or feature_levels(llm.num_hidden_layers, self.queries)
        if not all(0 <= level <= llm.num_hidden_layers for level in levels):
            raise ValueError(f"draft levels {levels} exceed the target's {llm.num_hidden_layers} layers")
        return levels

    def entries(self, llm: LLMConfig) -> tuple[int, ...]:
        """All entries of `MoTOutput.layers` that the head reads, ascending."""
        own = set(self.level_entries(llm))
        if self.attends:
            own |= set(range(1, llm.num_hidden_layers + 1))
        return tuple(sorted(own))


def feature_levels(num_layers: int, queries: int = 3) -> tuple[int, ...]:
    """Low, middle and high level as in EAGLE-3: the residual streams entering layers 2, L / 2 and L - 3.

    Other numbers of queries get as many levels, evenly between the lowest and the highest. Models of few layers repeat
    levels rather than leave the range.
    """
    low = min(2, num_layers)
    high = max(num_layers - 3, low)
    if queries == 3:
        return low, max(num_layers // 2, low), high
    step = (high - low) / max(queries - 1, 1)
    return tuple(round(low + step * i) if queries > 1 else high for i in range(queries))
