"""Proposals without a draft: what followed the last few tokens where they stood before (prompt lookup), or in other
answers.

They cost nothing, need no training, and are often right where an answer repeats its question, or itself, and where a
model speaks in set phrases.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch

from hyperbagel.decoding.proposal import Proposal
from hyperbagel.draft.phrases import LONGEST, Phrases

_LONGEST = 6
"""Tokens of the longest sequences that are looked up, or as many as have to agree."""


@dataclass(frozen=True)
class LookupSettings:
    """When the text itself proposes, in the place of the draft head, and how much.

    Examples:
        >>> from hyperbagel.decoding.speculative import SpeculationSettings
        >>> SpeculationSettings(length=4, lookup=LookupSettings(match=2)).lookup.length
        8
    """

    match: int = 3
    """How many of the last tokens have to have stood before in the same order."""
    length: int = 8
    """Tokens proposed at most."""
    phrases: str | None = None
    """File of `hyperbagel data phrases`, what the model said in other answers: proposed where the text has nothing."""
    share: float = 0.5
    """How likely phrases have to be, by how often they followed on what was said (product over their tokens)."""

    def __post_init__(self) -> None:
        if self.match < 1 or self.length < 1 or not 0 < self.share <= 1:
            raise ValueError(f"a lookup needs match >= 1, length >= 1 and a share above 0 and up to 1, got {self}")


class Lookup:
    """A document's question and answer so far, and where each short sequence of their tokens stood last.

    text: ids of the question; negative ones are no text, and are never proposed; phrases: of other answers.

    Examples:
        >>> from hyperbagel.decoding.lookup import LookupSettings
        >>> lookup = Lookup(LookupSettings(match=2, length=3), [5, 6, 7, 8, 9, 5, 6])
        >>> lookup.propose(most=8, stop=[9])
        [7, 8]
    """

    def __init__(self, settings: LookupSettings, text: Iterable[int], phrases: Phrases | None = None) -> None:
        self.settings, self.phrases = settings, phrases
        self.tokens: list[int] = []
        self._sizes = range(max(_LONGEST, settings.match), settings.match - 1, -1)
        self._behind: dict[tuple[int, ...], int] = {}
        self.extend(text)

    def extend(self, tokens: Iterable[int]) -> None:
        """Note what follows."""
        for token in tokens:
            place = len(self.tokens)
            for size in self._sizes:
                if size <= place:
                    self._behind[tuple(self.tokens[place - size :])] = place
            self.tokens.append(token)

    def propose(self, most: int, stop: Collection[int]) -> list[int]:
        """What followed the longest sequence of last tokens that stood before, or else the phrases that mostly follow;
        up to a stop token. most: tokens.
        """
        most = min(most, self.settings.length)
        proposed = self._followed(most)
        if not proposed and self.phrases is not None:
            proposed = self.phrases.propose(self.tokens[-LONGEST:], most, self.settings.share)
        end = next((i for i, token in enumerate(proposed) if token < 0 or token in stop), len(proposed))
        return proposed[:end]

    def _followed(self, most: int) -> list[int]:
        """What followed before. Where that reaches the end of the text, it goes on from the place again: a text that
        repeats itself goes on so."""
        for size in self._sizes:
            place = self._behind.get(tuple(self.tokens[-size:]))
            if place is None or size > len(self.tokens):
                continue
            period = len(self.tokens) - place
            return [self.tokens[place + i % period] for i in range(most)]
        return []


def laid_over(proposal: Proposal | None, found: Sequence[Sequence[int]]) -> Proposal | None:
    """A chain in which documents have what was found for them in the place of the draft's tokens.

    It is as long as at least half of the documents have tokens for: to verify those of a few costs as much as those of
    all. What is shorter is filled up with any token: the target refuses it, or would have chosen it anyway. Trees and
    drawn tokens stay as they are.
    """
    if not any(found) or (
        proposal is not None and (proposal.parents is not None or proposal.probabilities is not None)
    ):
        return proposal
    drafted: list[list[int]] = [[]] * len(found) if proposal is None else proposal.tokens.tolist()
    chains = [list(own) or theirs for own, theirs in zip(found, drafted, strict=True)]
    steps = sorted(map(len, chains), reverse=True)[(len(chains) - 1) // 2]
    if not steps:
        return None
    tokens = torch.tensor([[*chain[:steps], *[0] * (steps - len(chain))] for chain in chains])
    return Proposal(tokens if proposal is None else tokens.to(proposal.tokens.device), steps=steps)
