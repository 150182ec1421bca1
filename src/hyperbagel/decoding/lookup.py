"""Proposals without a draft: what followed the last few tokens where they stood before (prompt lookup), and in other
answers, as a tree of the likeliest ways on.

They cost nothing, need no training, and are often right where an answer repeats its question, or itself, and where a
model speaks in set phrases. Where they are unsure, they go on from the tree that a draft head proposes.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from hyperbagel.decoding.proposal import Proposal
from hyperbagel.draft.phrases import KEPT, LONGEST, Followers, Phrases

_DOUBT = 0.7
"""How little to go by one agreeing token is; n of them leave a doubt of 0.7 ** n."""
_OPTIMISM = 1.5
"""Counts promise too much of answers that were not counted: what they call 0.3 is 0.17, 0.8 is 0.7 (measured)."""
_LEAST = 0.01
"""What is less likely is not looked at."""


@dataclass(frozen=True)
class LookupSettings:
    """When the text itself and phrases propose, in the place of the draft head, and how much.

    Examples:
        >>> from hyperbagel.decoding.speculative import SpeculationSettings
        >>> SpeculationSettings(length=4, lookup=LookupSettings(match=2)).lookup.length
        8
    """

    match: int = 3
    """How many of the last tokens have to have stood before in the same order in the text."""
    length: int = 8
    """Tokens of a path at most."""
    nodes: int = 12
    """Tokens proposed at most, of all paths."""
    phrases: str | None = None
    """File of `hyperbagel data phrases`: what the model said in other answers counts too."""
    share: float = 0.15
    """How likely the likeliest next token has to be; elsewhere the draft head proposes."""
    trust: float = 0.5
    """How much a draft head's own chances count where it proposes a tree: that is then grown on by what was looked
    up, whose chances count for the rest."""
    free: int = 5
    """Tokens that are verified in the time of one (by a CPU in float32: five)."""
    price: float = 0.05
    """What each further one costs, in passes over one token a document."""

    def __post_init__(self) -> None:
        least = min(self.match, self.length, self.nodes, self.free)
        if least < 1 or not 0 < self.share <= 1 or not 0 <= self.trust <= 1 or self.price < 0:
            raise ValueError(
                "a lookup needs match, length, nodes and free >= 1, 0 < share <= 1, 0 <= trust <= 1 and price >= 0, "
                f"got {self}"
            )


@dataclass
class Branches:
    """The likeliest ways on of one document, as a tree of tokens whose root is its last one.

    tokens, parents, chances: of each node, the likeliest first: its token, the number of its parent (the root's is 0,
    the first node's 1), and how likely all tokens up to it are.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def children(self) -> dict[int, dict[int, tuple[int, float]]]:
        """Of each node that has some: their numbers, and how likely each is behind it, by their tokens."""
        known = [1.0, *self.chances]
        found: dict[int, dict[int, tuple[int, float]]] = {}
        for number, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True), 1):
            if known[parent] >= _LEAST:
                found.setdefault(parent, {})[token] = number, known[number] / known[parent]
        return found


class Lookup:
    """A document's question and answer so far, and what followed each short sequence of their tokens.

    text: ids of the question; negative ones are no text, and are never proposed; phrases: of other answers.

    Examples:
        >>> from hyperbagel.decoding.lookup import LookupSettings
        >>> lookup = Lookup(LookupSettings(match=2, length=3), [5, 6, 7, 8, 9, 5, 6])
        >>> lookup.propose(most=8, stop=[9]).tokens
        [7, 8]
    """

    def __init__(self, settings: LookupSettings, text: Iterable[int], phrases: Phrases | None = None) -> None:
        self.settings, self.phrases = settings, phrases
        self.tokens: list[int] = []
        self._longest = max(LONGEST, settings.match)
        self._behind: dict[tuple[int, ...], dict[int, int]] = {}
        self.extend(text)

    def extend(self, tokens: Iterable[int]) -> None:
        """Note what follows."""
        for token in tokens:
            for size in range(self.settings.match, min(self._longest, len(self.tokens)) + 1):
                counts = self._behind.setdefault(tuple(self.tokens[-size:]), {})
                counts[token] = counts.pop(token, 0) + 1
            self.tokens.append(token)

    def propose(self, most: int, stop: Collection[int], drafted: Branches | None = None) -> Branches:
        """The likeliest paths; without a draft nothing where the next token is unsure. A stop token is left to the
        target, which says it unasked. most: tokens of a path; drafted: what the draft head proposes, to be grown on.
        """
        most, found = min(most, self.settings.length), Branches()
        known = {} if drafted is None else drafted.children()
        # Chances, less than zero; order; parent; path; the draft's number of it, or -1.
        heap: list[tuple[float, int, int, list[int], int]] = []
        order = itertools.count()
        parent, path, chance, place = 0, list[int](), 1.0, 0
        while len(found) < self.settings.nodes:
            if len(path) < most:
                window = [*self.tokens[-self._longest :], *path][-self._longest :]
                for token, (number, share) in self._likely(window, known.get(place)).items():
                    if token >= 0 and token not in stop and chance * share >= _LEAST:
                        heapq.heappush(heap, (-chance * share, next(order), parent, [*path, token], number))
            if not heap:
                break
            less, _, parent, path, place = heapq.heappop(heap)
            chance = -less
            if not found and drafted is None and chance < self.settings.share:
                break
            found.tokens.append(path[-1])
            found.parents.append(parent)
            found.chances.append(chance)
            parent = len(found)
        return found

    def _likely(
        self, window: Sequence[int], drafted: dict[int, tuple[int, float]] | None
    ) -> dict[int, tuple[int, float]]:
        """How likely each token is behind a window, with the draft's number of it or -1. drafted: what the draft says
        of them."""
        found = {token: (-1, share**_OPTIMISM) for token, share in self._following(window)}
        if drafted is None:
            return found
        trust = self.settings.trust
        mixed = {token: (-1, (1 - trust) * share) for token, (_, share) in found.items()}
        for token, (number, share) in drafted.items():
            mixed[token] = number, mixed.get(token, (-1, 0.0))[1] + trust * share
        return mixed

    def _following(self, window: Sequence[int]) -> list[tuple[int, float]]:
        """The likeliest tokens behind a window, and how likely each is: as they followed its longest known end, and,
        as far as that leaves a doubt, shorter ones; first in the text, then in phrases."""
        chances: dict[int, float] = {}
        rest = 1.0
        for size in range(len(window), 0, -1):
            for followers in (self._own(window[-size:]), self.phrases and self.phrases.after(window[-size:])):
                if followers:
                    for token, share in zip(followers.tokens, followers.shares, strict=True):
                        chances[token] = chances.get(token, 0.0) + rest * share
                    rest *= followers.rest
            if rest < _LEAST:
                break
        return sorted(chances.items(), key=lambda pair: -pair[1])[:KEPT]

    def _own(self, sequence: Sequence[int]) -> Followers | None:
        counts = self._behind.get(tuple(sequence))
        if counts is None:
            return None
        total = sum(counts.values())
        sure = (1 - _DOUBT ** len(sequence)) * total / (total + 0.5)
        latest = list(reversed(counts))  # of equally frequent ones the last comes first
        return Followers(latest, [sure * counts[token] / total for token in latest], 1 - sure)


def worth_verifying(found: Sequence[Branches], settings: LookupSettings) -> int:
    """How many nodes of each document are proposed: as long as what one more brings is worth what it costs. Documents
    have equally many rows in a pass, and those of few as many as those of all."""
    tokens, cost = float(len(found)), 1.0
    for nodes in range(settings.nodes):
        gain = sum(branches.chances[nodes] for branches in found if len(branches) > nodes)
        price = settings.price * len(found) if (nodes + 2) * len(found) > settings.free else 0.0
        if not gain or gain * cost < price * tokens:
            return nodes
        tokens, cost = tokens + gain, cost + price
    return settings.nodes


def branches_of(proposal: Proposal, row: int) -> Branches:
    """The tree that a draft head proposes for a document."""
    assert proposal.parents is not None and proposal.chances is not None
    return Branches(proposal.tokens[row].tolist(), proposal.parents[row].tolist(), proposal.chances[row].tolist())


def laid_over(proposal: Proposal | None, found: Sequence[Branches], settings: LookupSettings) -> Proposal | None:
    """A proposal in which documents have what was found for them in the place of the draft's chain or tree.

    What is shorter than others is filled up with any token: the target refuses it, or would have chosen it anyway.
    Drawn tokens of a draft stay as they are.
    """
    if not any(found) or (proposal is not None and proposal.probabilities is not None):
        return proposal
    nodes = worth_verifying(found, settings)
    drafted: list[tuple[list[int], list[int]]] = [([], [])] * len(found)
    if proposal is not None:
        tokens, chain = proposal.tokens.tolist(), list(range(proposal.tokens.shape[1]))
        above = [chain] * len(tokens) if proposal.parents is None else proposal.parents.tolist()
        drafted = list(zip(tokens, above, strict=True))
    rows = [
        (own.tokens[:nodes], own.parents[:nodes]) if own else theirs for own, theirs in zip(found, drafted, strict=True)
    ]
    return _stacked(rows, None if proposal is None else proposal.tokens.device)


def _stacked(rows: Sequence[tuple[list[int], list[int]]], device: torch.device | None) -> Proposal | None:
    """One proposal of tokens and parents of each document; None for no tokens."""
    width = max(len(tokens) for tokens, _ in rows)
    if not width:
        return None
    ids = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens, _ in rows], device=device)
    above = [[*parents, *[0] * (width - len(parents))] for _, parents in rows]
    depths = [_depths(parents) for parents in above]
    steps = max(map(max, depths))
    if steps == width and all(parents == list(range(len(parents))) for _, parents in rows):
        return Proposal(ids, steps=width)
    parents, depth = (torch.tensor(values, device=device) for values in (above, depths))
    return Proposal(ids, parents=parents, depth=depth, steps=steps)


def _depths(parents: Sequence[int]) -> list[int]:
    """How deep each node is; a parent comes before its children."""
    depths = [0]
    for parent in parents:
        depths.append(depths[parent] + 1)
    return depths[1:]
