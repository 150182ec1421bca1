"""Sampling with a draft leaves the target's distribution as it is; a verifier that does not is found out."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from hyperbagel.bagel.model import Bagel
from hyperbagel.decoding.adaptive import Adaptive
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text, next_token_probabilities
from hyperbagel.decoding.lookup import LookupSettings
from hyperbagel.decoding.policies import Costs
from hyperbagel.decoding.proposal import TreeSettings
from hyperbagel.decoding.speculative import SpeculationSettings, Speculator
from hyperbagel.decoding.verify import Randomness, draw, sample_chain, walk
from hyperbagel.draft.phrases import count_phrases, save_phrases
from tests.decoding.drafting import documents, draft, target

SAMPLES = 40_000
VOCABULARY = 5
WAYS = {
    "chain": SpeculationSettings(2),
    "confident": SpeculationSettings(2, min_confidence=0.2),
    "adaptive": SpeculationSettings(2, policy=Adaptive(1, Costs(0.1, 0.01, 0.0))),  # a nano head is never sure
    "tree": SpeculationSettings(2, tree=TreeSettings(2, 4)),
    "own generators": SpeculationSettings(2),
    "looked up": SpeculationSettings(
        2, policy=Adaptive(3), lookup=LookupSettings(match=1, length=2, share=0.01, price=0)
    ),
    "tree grown on": SpeculationSettings(
        2, tree=TreeSettings(2, 4), lookup=LookupSettings(match=1, length=2, share=0.9, price=0)
    ),
}
Verifier = Callable[[Tensor, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def tables(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Next-token distributions of a draft and a target given the token before: (V + 1, V), the last row for none."""
    generator = torch.Generator().manual_seed(seed)
    q, p = (torch.randn(2, VOCABULARY + 1, VOCABULARY, generator=generator) * 1.5).softmax(-1)
    p[1, 2], q[2, 1] = 0.0, 0.0  # tokens that one of them excludes, as top-p does
    return q / q.sum(-1, keepdim=True), p / p.sum(-1, keepdim=True)


def speculated(verifier: Verifier, seed: int) -> Tensor:
    """Two tokens each of many sequences: chains of two drafted tokens, verified; (SAMPLES, 2)."""
    q, p = tables()
    generator = torch.Generator().manual_seed(seed)
    before = torch.full((SAMPLES,), VOCABULARY)
    first = torch.multinomial(q[before], 1, generator=generator)[:, 0]
    second = torch.multinomial(q[first], 1, generator=generator)[:, 0]
    tokens = torch.stack([first, second], 1)
    proposed = torch.stack([q[before], q[first]], 1)
    wanted = torch.stack([p[before], p[first], p[second]], 1)
    accepted, bonus = verifier(tokens, proposed, wanted, generator)
    one = torch.where(accepted >= 1, first, bonus)
    # Where only the bonus token came out, the next one is the target's own draw.
    own = torch.multinomial(p[one], 1, generator=generator)[:, 0]
    two = torch.where(accepted >= 2, second, torch.where(accepted == 1, bonus, own))
    return torch.stack([one, two], 1)


def p_value(samples: Tensor) -> float:
    _, p = tables()
    expected = (p[VOCABULARY][:, None] * p[:VOCABULARY]).flatten() * len(samples)
    counts = torch.bincount(samples[:, 0] * VOCABULARY + samples[:, 1], minlength=VOCABULARY**2).double()
    possible = expected > 0
    assert not counts[~possible].any()
    expected = expected[possible].double()
    return float(chisquare(counts[possible].numpy(), (expected / expected.sum() * len(samples)).numpy()).pvalue)


def without_residual(tokens: Tensor, q: Tensor, p: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws from the target itself behind a rejected token: the draft's favourites come out too often."""
    accepted, _ = sample_chain(tokens, q, p, generator)
    return accepted, draw(p[torch.arange(len(p)), accepted], generator)


def always_accepting_likely(tokens: Tensor, q: Tensor, p: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Accepts whatever the target finds at all likely (typical acceptance), which is not lossless."""
    likely = p[:, :-1].gather(-1, tokens[..., None])[..., 0] > 0.05
    accepted = likely.long().cumprod(-1).sum(-1)
    return accepted, draw(p[torch.arange(len(p)), accepted], generator)


def leaving_out_the_unlikely(tokens: Tensor, q: Tensor, p: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A chain that ends before a drawn token that the draft itself finds unlikely."""
    accepted, bonus = sample_chain(tokens, q, p, generator)
    left_out = q[:, 0].gather(-1, tokens[:, :1])[:, 0] < 0.3
    return accepted.masked_fill(left_out, 0), torch.where(left_out, draw(p[:, 0], generator), bonus)


def test_speculative_sampling_keeps_the_distribution() -> None:
    values = [p_value(speculated(sample_chain, seed)) for seed in range(3)]
    assert min(values) > 1e-3 and max(values) < 1 - 1e-6, values


@pytest.mark.parametrize("verifier", [without_residual, always_accepting_likely, leaving_out_the_unlikely])
def test_a_broken_verifier_is_found_out(verifier: Verifier) -> None:
    assert p_value(speculated(verifier, seed=0)) < 1e-6


def test_as_much_is_accepted_as_the_distributions_share() -> None:
    q, p = tables()
    tokens = torch.multinomial(q[VOCABULARY], SAMPLES, replacement=True, generator=torch.Generator().manual_seed(0))
    wide = p[VOCABULARY].expand(SAMPLES, 2, -1)
    accepted, _ = sample_chain(tokens[:, None], q[VOCABULARY].expand(SAMPLES, 1, -1), wide, torch.Generator())
    shared = float(torch.minimum(p[VOCABULARY], q[VOCABULARY]).sum())
    assert abs(float(accepted.float().mean()) - shared) < 4 * (shared * (1 - shared) / SAMPLES) ** 0.5


def test_equal_distributions_accept_everything() -> None:
    p = torch.rand(6, 4, 9).softmax(-1)
    tokens = draw(p[:, :3])
    accepted, bonus = sample_chain(tokens, p[:, :3], p)
    assert accepted.tolist() == [3] * 6 and bonus.shape == (6,)


def test_choices_through_a_tree_keep_the_distribution() -> None:
    """Fixed candidates: the target draws at every node, and goes on as long as its draw is in the tree."""
    _, p = tables()
    tokens, parents = [0, 3, 1, 0], [0, 0, 1, 2]
    state = torch.tensor([VOCABULARY, *tokens])
    generator = torch.Generator().manual_seed(1)
    chosen = draw(p[state].expand(SAMPLES, -1, -1), generator)
    firsts, seconds = [], []
    for row in chosen.tolist():
        path = walk(tokens, parents, row)
        made = [row[node] for node in path]
        firsts.append(made[0])
        seconds.append(made[1] if len(made) > 1 else -1)
    one, two = torch.tensor(firsts), torch.tensor(seconds)
    own = torch.multinomial(p[one], 1, generator=generator)[:, 0]
    assert p_value(torch.stack([one, torch.where(two < 0, own, two)], 1)) > 1e-3


@cache
def decided() -> Bagel:
    """A target that makes up its mind: at 1 it says as few answers as the other one at 0.7 and top-p 0.8."""
    model = copy.deepcopy(target())
    with torch.no_grad():
        model.understanding.norm.weight.mul_(2.0)
    return model


SAMPLING = {
    "0.7": (target, DecodingSettings(max_tokens=3, temperature=0.7, top_p=0.8, stop=())),
    "1": (decided, DecodingSettings(max_tokens=3, temperature=1.0, stop=())),
}


@pytest.mark.slow
@pytest.mark.parametrize("temperature", SAMPLING)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["hyper", "parallel"])
def test_whole_decoding_keeps_the_distribution(kind: Literal["hyper", "parallel"], way: str, temperature: str) -> None:
    """Three tokens each of 20,000 answers against the probabilities that plain passes give."""
    which, settings = SAMPLING[temperature]
    model = which()
    speculator = Speculator(model, draft(kind, trained=True), WAYS[way])
    question, rows = documents(1), 500
    context = speculator.prefill(question * rows)
    generator: Randomness = torch.Generator().manual_seed(0)
    if way == "own generators":
        generator = [torch.Generator().manual_seed(seed) for seed in range(rows)]
    made = [tuple(a) for _ in range(20_000 // rows) for a in speculator.decode(context, settings, generator)]
    if (kind, way) != ("parallel", "confident"):  # it is hardly ever sure
        assert speculator.statistics.acceptance_length > (1.0 if way == "looked up" else 1.1)
    assert p_value_of_answers(made, exact(model, settings)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("temperature", SAMPLING)
def test_trees_of_phrases_keep_the_distribution(temperature: str, tmp_path: Path) -> None:
    """Without a head, by what other draws said."""
    which, settings = SAMPLING[temperature]
    model, question, rows = which(), documents(1), 500
    plain = Speculator(model)
    said = plain.decode(plain.prefill(question * rows), settings, torch.Generator().manual_seed(7))
    save_phrases(
        count_phrases([[model.config.tokens.bos, *answer] for answer in said]), tmp_path / "phrases.safetensors"
    )
    lookup = LookupSettings(match=1, phrases=str(tmp_path / "phrases.safetensors"), share=0.01, price=0)
    speculator = Speculator(model, speculation=SpeculationSettings(lookup=lookup))
    context, generator = speculator.prefill(question * rows), torch.Generator().manual_seed(0)
    made = [tuple(a) for _ in range(20_000 // rows) for a in speculator.decode(context, settings, generator)]
    assert speculator.statistics.acceptance_length > 1.2
    assert p_value_of_answers(made, exact(model, settings)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("temperature", SAMPLING)
def test_answers_of_another_temperature_are_found_out(temperature: str) -> None:
    which, settings = SAMPLING[temperature]
    model, question, rows = which(), documents(1), 500
    warmer = dataclasses.replace(settings, temperature=settings.temperature * 1.1)
    generator, context = torch.Generator().manual_seed(0), Speculator(model).prefill(question * rows)
    made = [tuple(a) for _ in range(20_000 // rows) for a in Speculator(model).decode(context, warmer, generator)]
    assert p_value_of_answers(made, exact(model, settings)) < 1e-6


def p_value_of_answers(made: list[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Of answers, given the probability of each; 0 where one is impossible."""
    counts = Counter(made)
    frequent = [key for key, value in expected.items() if value * len(made) > 10]
    observed = [counts[key] for key in frequent]
    wanted = [expected[key] * len(made) for key in frequent]
    rest = len(made) - sum(wanted)
    if rest > 5:
        observed, wanted = [*observed, len(made) - sum(observed)], [*wanted, rest]
    total = sum(wanted)
    if set(counts) - set(expected):
        return 0.0
    return float(chisquare(observed, [w * sum(observed) / total for w in wanted]).pvalue)


def exact(model: Bagel, settings: DecodingSettings) -> dict[tuple[int, ...], float]:
    """Probability of every answer of three tokens, from one pass a prefix."""
    context = model.prefill(documents(1))
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer: dict[tuple[int, ...], float] = {}
        for prefix, mass in found.items():
            if mass < 1e-9:
                continue
            one = next_distribution(model, context, prefix, settings)
            longer |= {(*prefix, token): mass * float(one[token]) for token in one.nonzero()[:, 0].tolist()}
        found = longer
    return found


def next_distribution(model, context, prefix, settings) -> Tensor:  # type: ignore[no-untyped-def]
    from hyperbagel.bagel.context import DecodeCache

    ids = torch.tensor([[model.config.tokens.bos, *prefix]])
    stream = model.decode(ids, DecodeCache(context, ids.shape[1])).streams.und[:, -1]
    return next_token_probabilities(model.next_logits(stream), settings)[0]


def test_sampled_answers_repeat_with_the_seed_and_end_like_plain_ones() -> None:
    model = target()
    settings = DecodingSettings(max_tokens=8, temperature=1.0, top_p=0.9, stop=(7,))
    speculator = Speculator(model, draft("hyper", trained=True), SpeculationSettings(3))
    context = speculator.prefill(documents(4))
    one, two = (speculator.decode(context, settings, torch.Generator().manual_seed(5)) for _ in range(2))
    assert one == two and one != speculator.decode(context, settings, torch.Generator().manual_seed(6))
    # Next to no temperature is greedy decoding.
    cold = DecodingSettings(max_tokens=8, temperature=1e-4, stop=(7,))
    greedy = DecodingSettings(max_tokens=8, stop=(7,))
    assert speculator.decode(context, cold, torch.Generator()) == decode_text(model, context, greedy)


def test_with_a_generator_each_answers_do_not_depend_on_their_neighbours() -> None:
    settings = DecodingSettings(max_tokens=8, temperature=1.0, top_p=0.9, stop=(7,))
    speculator = Speculator(target(), draft("hyper", trained=True), SpeculationSettings(3))
    asked = documents(6)

    def generators(rows: range) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(row) for row in rows]

    together = speculator.decode(speculator.prefill(asked), settings, generators(range(6)))
    halves = [
        answer
        for rows in (range(3), range(3, 6))
        for answer in speculator.decode(speculator.prefill([asked[row] for row in rows]), settings, generators(rows))
    ]
    assert [a[:4] for a in together] == [a[:4] for a in halves] and len(set(map(tuple, together))) > 3
