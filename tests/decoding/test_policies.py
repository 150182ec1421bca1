"""What decides when to draft: by costs and by what came of it, and never so that an answer would change."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest

from hyperbagel.decoding.adaptive import Adaptive
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.policies import PLAIN, Costs, Fixed, Plan, Policy, Round, Work
from hyperbagel.decoding.speculative import ADAPTIVE, SpeculationSettings, Speculator
from tests.decoding.drafting import COSTS, SETTINGS, documents, draft, target

EXACT = Work(16, COSTS, exact=True)
REPEATED = Work(16, COSTS, exact=False)


def answered(
    policy: Policy, length: int, gain: int, work: Work = EXACT, first: int = 30, ending: Sequence[int] = ()
) -> tuple[int, int]:
    """Let a policy decide over an answer of `length` tokens, of which a drafted round brings `gain`: how many rounds
    drafted, and how many there were. ending: of the question."""
    policy.begin(work)
    policy.meet({0: ending})
    answer: list[int] = []
    drafted = rounds = 0
    while len(answer) < length:
        plan = policy.plan({0: answer})
        new = min(gain if plan.length else 1, length - len(answer))
        answer += [first, *range(40, 100)][len(answer) : len(answer) + new]
        ended = {0: answer} if len(answer) == length else {}
        steps = min(plan.length, gain - 1) if plan.length else 0
        policy.note(Round(plan.length > 0, steps, {0: new}, ended, None))
        drafted, rounds = drafted + (plan.length > 0), rounds + 1
    return drafted, rounds


@pytest.mark.parametrize("work", [EXACT, REPEATED])
def test_first_tokens_are_plain_and_long_answers_drafted(work: Work) -> None:
    policy = Adaptive(wait=3, costs=COSTS)
    for _ in range(8):
        assert answered(policy, 1, 8, work) == (0, 1)
    drafted, rounds = answered(Adaptive(wait=3, costs=COSTS), 51, 8, work)
    assert drafted == 6 and rounds == 9


def test_beginnings_that_go_on_are_drafted_at_once() -> None:
    """Answers that begin with 30 are long, those that begin with 31 short, which shows after the first token; when all
    are long, before it."""
    mixed = Adaptive(costs=COSTS)
    for _ in range(6):
        answered(mixed, 50, 8, first=30)
        answered(mixed, 2, 8, first=31)
    assert answered(mixed, 50, 8, first=30) == (7, 8)
    assert answered(mixed, 2, 8, first=31) == (0, 2)
    long = Adaptive(costs=COSTS)
    for _ in range(6):
        answered(long, 50, 8)
    assert answered(long, 50, 8) == (7, 7)
    # What is sampled has to repeat with its seed, whatever was answered before.
    assert answered(long, 50, 8, REPEATED)[0] == answered(Adaptive(costs=COSTS), 50, 8, REPEATED)[0] == 6


def test_questions_whose_answers_go_on_are_drafted_at_once() -> None:
    policy = Adaptive(costs=COSTS)
    for _ in range(6):
        answered(policy, 50, 8, ending=[5, 6])
        answered(policy, 2, 8, ending=[5, 7])
    assert answered(policy, 50, 8, ending=[5, 6]) == (7, 7)
    assert answered(policy, 2, 8, ending=[5, 7]) == (0, 2)
    assert answered(policy, 50, 8, REPEATED, ending=[5, 6])[0] == 6


def test_drafting_that_does_not_pay_is_switched_off_and_tried_again() -> None:
    policy = Adaptive(wait=0, costs=COSTS)
    policy.begin(REPEATED)
    decisions = []
    for _ in range(200):
        plan = policy.plan({0: [1] * 50})
        decisions.append(plan.length > 0)
        policy.note(Round(plan.length > 0, 1 if plan.length else 0, {0: 1}, {}, None))
    drafted = [i for i, yes in enumerate(decisions) if yes]
    pauses = [b - a for a, b in pairwise(drafted)]
    assert sum(decisions) < 12 and decisions[100:].count(True) >= 1
    assert pauses[-1] > pauses[0] and pauses == sorted(pauses)
    # What begins to pay is drafted again, without more pauses.
    while not policy.plan({0: [1] * 50}).length:
        policy.note(Round(False, 0, {0: 1}, {}, None))
    for _ in range(3):
        policy.note(Round(True, 5, {0: 6}, {}, None))
        assert policy.plan({0: [1] * 50}).length


def test_a_head_that_never_gains_is_hardly_tried() -> None:
    policy = Adaptive(costs=COSTS)
    counts = [answered(policy, 40, 1)[0] for _ in range(40)]
    assert counts[0] >= 1 and sum(counts[5:]) <= 4, counts


def test_costly_tokens_have_to_be_likelier() -> None:
    def least(costs: Costs, gain: int = 4) -> float:
        policy = Adaptive(wait=0, costs=costs)
        policy.begin(REPEATED)
        for _ in range(6):
            policy.note(Round(True, gain - 1, {0: gain}, {}, None))
        return policy.plan({0: [1] * 9}).min_confidence

    cheap, dear = least(Costs(0.2, 0.05, 0.0)), least(Costs(0.2, 0.2, 0.0))
    assert cheap < dear < 1
    assert least(Costs(0.2, 0.05, 0.0), 12) > cheap  # the faster it goes, the more a step has to bring


def test_costs_are_learnt_by_the_clock() -> None:
    """A round of n tokens takes 30 + 5 n, a plain pass 20; the prior says something else."""
    policy = Adaptive()
    work = Work(16, Costs(start=3.0, step=1.0), exact=True)
    policy.begin(work)
    for i in range(60):
        policy.note(Round(False, 0, {0: 1}, {}, 20.0))
        steps = 1 + i % 9
        policy.note(Round(True, steps, {0: 5}, {}, 30.0 + 5 * steps))
    costs = policy._costs(1)
    assert costs.start == pytest.approx(0.5, abs=0.15) and costs.token(1) == pytest.approx(0.25, abs=0.03)
    assert policy._costs(4) == work.costs  # batches of another size have costs of their own
    policy.begin(Work(16, work.costs, exact=False))
    assert policy._costs(1) == work.costs


def test_typical_costs_follow_the_sizes() -> None:
    llm, heads = target().config.llm, {kind: draft(kind, trained=False).config for kind in ("hyper", "parallel")}
    one, parallel = (Costs.typical(llm, config) for config in heads.values())
    assert parallel.token(1) < one.token(1) < one.token(4)
    assert one.round(6, 1) - one.round(5, 1) == pytest.approx(one.token(1))


class Alternating(Policy):
    """A policy as somebody else may write it."""

    def __init__(self) -> None:
        self.asked: list[dict[int, list[int]]] = []
        self.met: dict[int, list[int]] = {}

    def meet(self, endings: Mapping[int, Sequence[int]]) -> None:
        self.met |= {number: list(ending) for number, ending in endings.items()}

    def plan(self, answers: Mapping[int, Sequence[int]]) -> Plan:
        self.asked.append({number: list(answer) for number, answer in answers.items()})
        return Plan(3) if len(self.asked) % 2 else PLAIN


def test_any_policy_gives_the_same_answers() -> None:
    model, asked = target(), documents(6)
    expected = decode_text(model, model.prefill(asked), SETTINGS)
    given = Alternating()
    speculator = Speculator(model, draft("hyper", trained=True), SpeculationSettings(5, policy=given))
    assert speculator.decode(speculator.prefill(asked), SETTINGS) == expected
    assert not given.asked, "a speculator has a copy of its own"
    seen = speculator.policy.asked  # type: ignore[attr-defined]
    endings = {number: last.ids[-8:].tolist() for number, (*_, last) in enumerate(asked)}  # type: ignore[union-attr]
    assert speculator.policy.met == endings  # type: ignore[attr-defined]
    assert seen[0] == {number: [] for number in range(6)} and len(seen[-1]) < 6
    for number, answer in enumerate(expected):
        assert all(answer[: len(part[number])] == part[number] for part in seen if number in part)


def test_answers_are_the_same_by_any_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks by which drafting is free, or takes for ever."""
    monkeypatch.setattr(Costs, "typical", lambda *sizes: Costs(0.1, 0.05))
    model, asked = target(), documents(12)
    expected = [decode_text(model, model.prefill([document]), SETTINGS)[0] for document in asked]
    passes = []
    for pace in (0.0, 5.0):
        speculator = Speculator(model, draft("hyper", trained=True), SpeculationSettings(8, policy=Adaptive(1)))
        now = [0.0]

        def clock(now: list[float] = now, pace: float = pace, speculator: Speculator = speculator) -> float:
            """A pass takes 1; `pace` more for each token that was proposed so far."""
            proposed = sum(speculator.statistics.proposed[:1])
            now[0] += 1.0
            return now[0] + pace * 100 * proposed

        speculator.clock = clock
        assert [speculator.decode(speculator.prefill([d]), SETTINGS)[0] for d in asked] == expected
        passes.append(speculator.statistics.passes)
    assert passes[0] < passes[1]


def test_the_default_waits_and_its_settings_stay_as_they_are() -> None:
    before = copy.deepcopy(ADAPTIVE.decided_by.__dict__)
    speculator = Speculator(target(), draft("hyper", trained=True))
    speculator.decode(speculator.prefill(documents(1)), DecodingSettings(12, stop=()))
    assert ADAPTIVE.decided_by.__dict__ == before and speculator.policy is not ADAPTIVE.policy


def test_impossible_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="wait"):
        Adaptive(-1)
    with pytest.raises(ValueError, match="min_confidence"):
        Fixed(1.0)
