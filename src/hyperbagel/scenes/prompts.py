"""Prompts of the generation task: the training mix with its scenes, and those of a split in GenEval's official mix."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle, islice, permutations, product
from random import Random
from typing import Any, Final

from hyperbagel.scenes.claims import Claim, Noun
from hyperbagel.scenes.heldout import check_split
from hyperbagel.scenes.layout import random_scene
from hyperbagel.scenes.palette import BACKGROUNDS, COLORS, PLACES, RELATIONS, SHAPES, SIZES
from hyperbagel.scenes.world import Scene, SceneObject, relation

GENEVAL_COUNTS: Final[dict[str, int]] = {
    "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100,
}  # fmt: skip
"""Prompts of each task in the official benchmark: 553 in all."""

_COLORS, _BACKGROUNDS = tuple(COLORS), tuple(BACKGROUNDS)
_TRAINING_WEIGHTS: Final[dict[str, int]] = {
    "single_object": 4, "two_object": 14, "counting": 18, "colors": 6, "position": 14, "color_attr": 22,
    "caption": 22,
}  # fmt: skip
"""Share of each task: numbers, and colours of several objects, take longest to learn."""


def geneval_claim(tag: str, rng: Random) -> Claim:
    """A random claim of one of GenEval's six templates. Raises ValueError for an unknown tag."""
    a, b = rng.sample(SHAPES, 2)
    c, d = rng.sample(_COLORS, 2)
    match tag:
        case "single_object":
            return Claim((Noun(a),), tag=tag)
        case "two_object":
            return Claim((Noun(a), Noun(b)), tag=tag)
        case "counting":
            return Claim((Noun(a, count=rng.randint(2, 4)),), tag=tag)
        case "colors":
            return Claim((Noun(a, c),), tag=tag)
        case "position":
            return Claim((Noun(a), Noun(b)), rng.choice(RELATIONS), tag=tag)
        case "color_attr":
            return Claim((Noun(a, c), Noun(b, d)), tag=tag)
    raise ValueError(f"unknown GenEval task {tag!r}: use one of {', '.join(GENEVAL_COUNTS)}")


def rich_claim(rng: Random) -> Claim:
    """A claim with more attributes than GenEval's templates have, so that binding is learnt."""
    shapes = rng.sample(SHAPES, 4)
    background = rng.choice(_BACKGROUNDS) if rng.random() < 0.4 else None

    def noun(shape: str, count: int = 1) -> Noun:
        return Noun(shape, rng.choice(_COLORS), rng.choice(SIZES) if rng.random() < 0.5 else None, None, count)

    match rng.randrange(5):
        case 0:  # one object with everything
            single = Noun(shapes[0], rng.choice(_COLORS), rng.choice(SIZES), rng.choice(PLACES))
            return Claim((single,), background=background)
        case 1:  # two in relation
            return Claim((noun(shapes[0]), noun(shapes[1])), rng.choice(RELATIONS), background)
        case 2:  # several of one kind, and another one
            return Claim((noun(shapes[0], rng.randint(2, 3)), noun(shapes[1])), background=background)
        case 3:  # two, each at its place
            places = rng.sample(PLACES, 2)
            nouns = (Noun(s, rng.choice(_COLORS), place=p) for s, p in zip(shapes, places, strict=False))
            return Claim(tuple(nouns), background=background)
        case _:  # three or four different ones
            return Claim(tuple(noun(shape) for shape in shapes[: rng.randint(3, 4)]), background=background)


def scene_of(claim: Claim, split: str, rng: Random) -> Scene:
    """A scene that shows just what `claim` says, with the rest (and nothing but the rest) left to chance.

    Raises ValueError where `split` has no such scene.
    """

    def related(objects: Sequence[SceneObject]) -> bool:
        return relation(objects[0], objects[1]) == claim.relation

    return random_scene(claim.specs(), split, rng, claim.background, related if claim.relation else None)


def random_prompt(split: str, rng: Random, tag: str | None = None) -> tuple[Claim, Scene]:
    """A claim (of task `tag`, or of the training mix) that `split` may ask for, and a scene that shows it."""
    tag = tag or rng.choices(tuple(_TRAINING_WEIGHTS), tuple(_TRAINING_WEIGHTS.values()))[0]
    while True:
        claim = rich_claim(rng) if tag == "caption" else geneval_claim(tag, rng)
        if claim.is_held_out(split):
            continue
        with suppress(ValueError):  # e.g. places that imply a held-out relation: ask for something else
            return claim, scene_of(claim, split, rng)


def geneval_prompts(split: str = "test", seed: int = 0, counts: dict[str, int] | None = None) -> list[dict[str, Any]]:
    """GenEval metadata of a split, grouped by task: the official mix of 553 prompts by default.

    Combinations that are held out for the split are in it at their natural share. A task asks for all its different
    prompts in random order before it repeats one (of the test split, single_object has 8 of them, counting 24,
    two_object 56, colors 80). Raises ValueError for an unknown split or task.
    """
    check_split(split)
    pools: dict[str, list[Claim]] = {
        "single_object": [Claim((Noun(a),)) for a in SHAPES],
        "two_object": [Claim((Noun(a), Noun(b))) for a, b in permutations(SHAPES, 2)],
        "counting": [Claim((Noun(a, count=n),)) for a in SHAPES for n in (2, 3, 4)],
        "colors": [Claim((Noun(a, c),)) for a in SHAPES for c in COLORS],
        "position": [Claim((Noun(a), Noun(b)), r) for a, b in permutations(SHAPES, 2) for r in RELATIONS],
        "color_attr": [
            Claim((Noun(a, c), Noun(b, d)))
            for (a, b), (c, d) in product(permutations(SHAPES, 2), permutations(COLORS, 2))
        ],
    }
    prompts = []
    for tag, count in (counts or GENEVAL_COUNTS).items():
        if tag not in pools:
            raise ValueError(f"unknown GenEval task {tag!r}: use one of {', '.join(pools)}")
        pool = [claim for claim in pools[tag] if not claim.is_held_out(split)]
        Random(f"{seed}/{tag}" if split == "test" else f"{split}/{seed}/{tag}").shuffle(pool)
        for claim in islice(cycle(pool), count):
            prompts.append(Claim(claim.nouns, claim.relation, claim.background, tag).metadata())
    return prompts
