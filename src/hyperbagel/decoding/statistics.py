"""Statistics of speculative decoding: acceptance length, the curve of acceptance rates, and the origin of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SpeculationStatistics:
    """Counts over any number of answers.

    passes: target verification passes, one a document and round; tokens: those emitted by them, stop tokens included;
    proposed: how often position n was reached with all earlier ones accepted; accepted: how often it was accepted too.

    Examples:
        >>> statistics = SpeculationStatistics()
        >>> statistics.add(emitted=4, accepted=3, proposed=3)
        >>> statistics.add(emitted=2, accepted=1, proposed=3)
        >>> statistics.acceptance_length, statistics.n_alpha
        (3.0, [1.0, 0.5, 1.0])
    """

    passes: int = 0
    tokens: int = 0
    proposed: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def add(self, emitted: int, accepted: int, proposed: int) -> None:
        """Count one pass of one document: tokens emitted, length of the accepted path and of the longest one
        proposed.
        """
        self.passes += 1
        self.tokens += emitted
        missing = proposed - len(self.proposed)
        self.proposed += [0] * missing
        self.accepted += [0] * missing
        for position in range(min(accepted + 1, proposed)):
            self.proposed[position] += 1
            self.accepted[position] += position < accepted

    def merge(self, other: SpeculationStatistics) -> None:
        """Add another's counts."""
        self.passes += other.passes
        self.tokens += other.tokens
        for name in ("proposed", "accepted"):
            mine, theirs = getattr(self, name), getattr(other, name)
            mine += [0] * (len(theirs) - len(mine))
            setattr(self, name, [a + b for a, b in zip(mine, theirs + [0] * (len(mine) - len(theirs)), strict=True)])

    @property
    def acceptance_length(self) -> float:
        """Tokens emitted per target pass, the target's own (bonus) token included."""
        return self.tokens / self.passes if self.passes else 0.0

    @property
    def n_alpha(self) -> list[float]:
        """Acceptance rate at draft position n, given that all earlier positions were accepted."""
        return [a / p if p else 0.0 for a, p in zip(self.accepted, self.proposed, strict=True)]

    @property
    def mean_alpha(self) -> float:
        """Mean of the curve over the positions that were reached."""
        reached = [alpha for alpha, count in zip(self.n_alpha, self.proposed, strict=True) if count]
        return sum(reached) / len(reached) if reached else 0.0


class Origin:
    """Whether each token of one answer came from the draft: in a pass, the accepted ones come before the model's own.

    statistics: of the decoding, which counts a pass before its tokens are handed out.
    """

    def __init__(self, statistics: SpeculationStatistics) -> None:
        self._statistics = statistics
        self._passes = self._accepted_before = self._accepted = self._index = 0

    def drafted(self) -> bool:
        """Of the next token."""
        if self._statistics.passes != self._passes:
            accepted = sum(self._statistics.accepted)
            self._accepted, self._accepted_before = accepted - self._accepted_before, accepted
            self._passes, self._index = self._statistics.passes, 0
        self._index += 1
        return self._index <= self._accepted
