"""When to draft, and how much: what decides before every round of speculative decoding.

Answers do not depend on it, only their speed does. A policy of your own derives from `Policy`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hyperbagel.bagel.config import LLMConfig
from hyperbagel.draft.config import DraftConfig


@dataclass(frozen=True)
class Costs:
    """What drafting costs, in passes over one token a document. start: of a round beside its pass, however short it
    is; step: of each token drafted; verified: of each token verified, for each document; reading: of the context, once.
    """

    start: float
    step: float
    verified: float = 0.03
    reading: float = 1.0

    @classmethod
    def typical(cls, llm: LLMConfig, draft: DraftConfig) -> Costs:
        """By the number of layers, as if each took as long."""
        layers = draft.layers + 1  # the LM head, fc1 and fc2 take about as long as a layer
        step = 0.0 if draft.kind == "parallel" else layers / (llm.num_hidden_layers + 1)
        start = (layers + draft.decodes) / (llm.num_hidden_layers + 1)
        return cls(start, step, reading=3 * start)

    def token(self, documents: int) -> float:
        """Of one more token proposed for each of so many documents."""
        return self.step + self.verified * documents

    def round(self, tokens: float, documents: int) -> float:
        """Of a round that proposes so many tokens for each document."""
        return 1 + self.start + tokens * self.token(documents)


@dataclass(frozen=True)
class Work:
    """What a call of decoding is. length: most tokens that may be proposed in a round; costs: `Costs.typical`; exact:
    whether answers are the same bit for bit whatever is proposed (greedy ones, in float32). Where they are not, a
    policy must decide by the tokens of this call alone, and by no clock, so that answers repeat with their seed.
    """

    length: int
    costs: Costs
    exact: bool


@dataclass(frozen=True)
class Plan:
    """What the next round proposes. length: most tokens, 0 for a plain pass; min_confidence: end a chain when the
    product of its draft probabilities falls below this."""

    length: int
    min_confidence: float = 0.0


PLAIN = Plan(0)
"""A pass without a proposal."""


@dataclass(frozen=True)
class Round:
    """What came of a round. drafted: whether the draft ran; steps: tokens of the longest path proposed; emitted: new
    tokens by document; ended: answers that ended with it, by document; seconds: how long it took, None for rounds that
    are unlike others, as those which read a context.
    """

    drafted: bool
    steps: int
    emitted: Mapping[int, int]
    ended: Mapping[int, Sequence[int]]
    seconds: float | None


class Policy(ABC):
    """Decides when to draft and how much. A speculator has a copy of its own, which may remember what came of it."""

    def begin(self, work: Work) -> None:  # noqa: B027
        """A call of decoding begins."""

    def meet(self, endings: Mapping[int, Sequence[int]]) -> None:  # noqa: B027
        """Documents come. endings: the last tokens of what each asks, by its number; none where the draft does not know
        the context."""

    @abstractmethod
    def plan(self, answers: Mapping[int, Sequence[int]]) -> Plan:
        """The next round. answers: the tokens so far of the documents that go on, by a number of each."""

    def note(self, round: Round) -> None:  # noqa: B027
        """A round is over."""


class Fixed(Policy):
    """Always drafts, as many tokens as are allowed, or until the draft becomes unsure.

    Args:
        min_confidence: end a chain when the product of its draft probabilities falls below this (0: never).
    """

    def __init__(self, min_confidence: float = 0.0) -> None:
        if not 0 <= min_confidence < 1:
            raise ValueError(f"need 0 <= min_confidence < 1, got {min_confidence}")
        self.min_confidence = min_confidence
        self._length = 1

    def begin(self, work: Work) -> None:
        """Take the length of chains."""
        self._length = work.length

    def plan(self, answers: Mapping[int, Sequence[int]]) -> Plan:
        """The same in every round."""
        return Plan(self._length, self.min_confidence)


class Never(Policy):
    """Never drafts: only what is looked up is proposed (see `decoding.lookup`)."""

    def plan(self, answers: Mapping[int, Sequence[int]]) -> Plan:
        """A plain pass."""
        return PLAIN
