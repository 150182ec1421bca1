"""A policy that drafts only where it pays, so that no kind of answer becomes slower than by plain decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hyperbagel.decoding.policies import PLAIN, Costs, Plan, Policy, Round, Work

_REST = 4, 64
"""Plain passes after a round that did not pay, at first and at most; their number doubles every time."""
_SURE = 0.9, 0.5
"""Share of earlier answers that went on, which it takes to draft within the first tokens, and soon after them."""
_SEEN = 4
"""How many earlier answers have to have had the same beginning."""
_KINDS = 2**16
"""Kinds of questions that are told apart, by their last tokens."""
_NEW = 0.6
"""Weight of the newest round in the running means of an answer."""
_BACKWARD = 32
"""About how many rounds the measured times reach back."""


@dataclass
class _Timing:
    """Seconds of plain passes and of rounds, as a line over the tokens that they propose; for one number of documents.

    sums: weights of rounds, and weighted tokens, their squares, seconds, and products of tokens and seconds.
    """

    passes: int = 0
    plain: float = 0.0
    sums: tuple[float, ...] = (0.0,) * 5

    def add(self, drafted: bool, tokens: int, seconds: float, expected: float) -> None:
        """Note a round. expected: how long it should have taken, in plain passes; what else happens on the machine does
        not count for more than three times that."""
        if not drafted:
            self.passes += 1
            seconds = min(seconds, 3 * self.plain) if self.passes > 3 else seconds
            self.plain += (seconds - self.plain) / min(self.passes, _BACKWARD)
        elif self.passes >= 3:
            seconds = min(seconds, 3 * expected * self.plain)
            new = (1.0, tokens, tokens * tokens, seconds, tokens * seconds)
            self.sums = tuple((1 - 1 / _BACKWARD) * old + value for old, value in zip(self.sums, new, strict=True))

    def costs(self, prior: Costs, documents: int) -> Costs:
        """The costs measured; where there is little to go by, nearly `prior`, or all of it."""
        if self.passes < 3 or not self.plain:
            return prior
        sums = list(self.sums)
        share = 1 / (1 + sums[0]) ** 2
        for tokens in (1, 16):
            seconds = prior.round(tokens, documents) * self.plain
            for i, value in enumerate((1.0, tokens, tokens * tokens, seconds, tokens * seconds)):
                sums[i] += share * value
        weight, first, second, total, product = sums
        slope = (weight * product - first * total) / (weight * second - first * first)
        start = (total - slope * first) / weight / self.plain - 1
        return Costs(max(start, 0.0), max(slope / self.plain, 0.005), 0.0, prior.reading)


@dataclass
class _Habit:
    """How often answers went on for long behind a beginning."""

    seen: int = 0
    share: float = 0.0

    def add(self, long: bool) -> None:
        self.seen += 1
        self.share += (long - self.share) / min(self.seen, 16)


@dataclass
class _Run:
    """What was seen of the answers of one call. emitted: tokens a drafted round, by document; spent: what such a round
    cost, in plain passes; rest: plain passes to make before the next try; pause: how many there will be after a failed
    one."""

    emitted: dict[int, float] = field(default_factory=dict)
    spent: float = 0.0  # nothing was drafted yet
    rest: int = 0
    pause: int = _REST[0]


class Adaptive(Policy):
    """Drafts where a round brings more tokens than it costs plain passes, and only as many tokens as are worth it.

    The first tokens of an answer are written plainly, since most of the short ones end with them and nothing could be
    gained, unless earlier answers to the same question, or with the same beginning, went on for long. Rounds that did
    not pay are followed by plain passes, more every time. A chain ends where the next token, given how likely it is to
    be accepted, is worth less than it costs at the present speed.

    Costs are measured as answers are written, and so are habits; where answers could depend on them (see `Work`),
    nothing is carried from one call to the next, and costs are taken to be typical ones.

    Args:
        wait: tokens that are written plainly at first.
        costs: of drafting, instead of measured or typical ones.

    Examples:
        >>> policy = Adaptive(wait=2)
        >>> policy.begin(Work(length=8, costs=Costs(start=0.2, step=0.1), exact=True))
        >>> [policy.plan({0: answer}).length for answer in ([], [7], [7, 7], [7, 7, 7])]
        [0, 0, 8, 8]
    """

    def __init__(self, wait: int = 4, costs: Costs | None = None) -> None:
        if wait < 0:
            raise ValueError(f"need wait >= 0, got {wait}")
        self.wait, self.fixed = wait, costs
        self._timings: dict[int, _Timing] = {}
        self._habits: dict[tuple[int, int], _Habit] = {}
        self._endings: dict[int, int] = {}  # of what is asked, by document
        self._usual = 0.0  # tokens that a drafted round emits; 0: not known yet
        self._enough = 0.0  # tokens that have to follow on a beginning, for drafting to pay; 0: to be computed
        self._tries = 0
        self._work: Work | None = None
        self._run = _Run()

    def begin(self, work: Work) -> None:
        """Start afresh, with what earlier calls taught."""
        self._work, self._run, self._endings = work, _Run(), {}

    def meet(self, endings: Mapping[int, Sequence[int]]) -> None:
        """Remember what is asked: answers to the same are of a kind."""
        self._endings |= {document: hash(tuple(ending)) % _KINDS for document, ending in endings.items()}

    def plan(self, answers: Mapping[int, Sequence[int]]) -> Plan:
        """Draft, when at least half of the answers are beyond their beginnings, and the last tries paid."""
        assert self._work is not None
        run, documents = self._run, len(answers)
        if 2 * sum(self._goes_on(document, answer) for document, answer in answers.items()) < documents:
            return PLAIN
        if not run.spent:
            self._start(run, self._costs(documents))
        if run.rest > 0:
            run.rest -= 1
            return PLAIN
        costs = self._costs(documents)
        speed = max(1.0, self._mean(answers, self._expected(costs)) / run.spent)
        return Plan(self._work.length, min(max(speed * costs.token(documents), 0.05), 0.9))

    def _start(self, run: _Run, costs: Costs) -> None:
        """What is expected before anything was drafted. Where no answer gained so far, only few calls try again."""
        run.spent = costs.round(self._expected(costs), 1)
        if self._work is not None and self._work.exact and 0 < self._usual < run.spent:
            self._tries += 1
            run.rest, run.pause = (0 if self._tries % 16 == 0 else _REST[1]), _REST[1]

    def note(self, round: Round) -> None:
        """Learn what rounds cost, whether they pay, and how long answers are."""
        assert self._work is not None
        documents = len(round.emitted)
        cost = 1.0
        if round.drafted:
            costs = self._costs(documents)
            cost = costs.round(round.steps, documents)
            self._judge(round, cost, costs)
        if self._work.exact:
            for document, answer in round.ended.items():
                failed = round.drafted and round.emitted[document] < cost
                self._remember(document, answer, len(answer) + 1 - round.emitted[document] if failed else -1)
                self._endings.pop(document, None)
        if self._work.exact and round.seconds is not None:
            if documents not in self._timings:
                self._timings[documents] = _Timing()
            self._timings[documents].add(round.drafted, round.steps, round.seconds, cost)

    def _judge(self, round: Round, cost: float, costs: Costs) -> None:
        """Whether drafting goes on. Rounds that end an answer say little: there was not more to emit."""
        run = self._run
        going = {document: count for document, count in round.emitted.items() if document not in round.ended}
        if not going:
            return
        for document, count in going.items():
            # Never so much is expected of a first round that it would not count when it fails.
            before = run.emitted.get(document, min(self._expected(costs), 2 * costs.round(4.0, 1)))
            run.emitted[document] = before + _NEW * (count - before)
        run.spent += _NEW * (cost - run.spent)
        if self._work is not None and self._work.exact:
            mean = sum(going.values()) / len(going)
            self._usual = mean if not self._usual else self._usual + 0.1 * (mean - self._usual)
            self._enough = 0.0
        gained = self._mean(going, 0.0) / run.spent
        if gained < 1:
            run.rest, run.pause = run.pause, min(2 * run.pause, _REST[1])
        elif gained > 1.1:
            run.pause = _REST[0]

    def _remember(self, document: int, answer: Sequence[int], failed: int) -> None:
        """Note for each beginning of an answer whether drafting would have paid from there on. failed: place from which
        it was tried, and did not."""
        usual, enough = self._usual or 4.0, self._enough
        if not enough:
            costs = self._costs(1)
            enough = self._enough = costs.round(usual, 1) + costs.reading
        for place in range(min(4 * self.wait, len(answer) + 1)):
            left, beginning = len(answer) + 1 - place, self._beginning(document, answer[:place])
            if beginning not in self._habits:
                self._habits[beginning] = _Habit()
            self._habits[beginning].add(min(left, usual) > enough and place != failed)

    def _goes_on(self, document: int, answer: Sequence[int]) -> bool:
        """Whether it is likely enough that much follows on an answer so far."""
        assert self._work is not None
        place = len(answer)
        known = self._work.exact and place < 4 * self.wait
        habit = self._habits.get(self._beginning(document, answer)) if known else None
        if habit is None or habit.seen < _SEEN:
            return place >= self.wait
        return habit.share >= _SURE[place >= self.wait]

    def _expected(self, costs: Costs) -> float:
        """Tokens that a round is expected to bring, as far as nothing is known of an answer."""
        exact = self._work is not None and self._work.exact
        return self._usual if exact and self._usual else min(4.0, 2 * costs.round(4.0, 1))

    def _mean(self, documents: Mapping[int, object], otherwise: float) -> float:
        return sum(self._run.emitted.get(document, otherwise) for document in documents) / len(documents)

    def _costs(self, documents: int) -> Costs:
        assert self._work is not None
        if self.fixed is not None:
            return self.fixed
        timing = self._timings.get(documents) if self._work.exact else None
        return self._work.costs if timing is None else timing.costs(self._work.costs, documents)

    def _beginning(self, document: int, answer: Sequence[int]) -> tuple[int, int]:
        """Place and last token of an answer so far; of an empty one what was asked."""
        return len(answer), answer[-1] if answer else self._endings.get(document, -1)
