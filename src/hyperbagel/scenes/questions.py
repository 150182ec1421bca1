"""Questions on a scene with short answers, and yes/no questions with hard negatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from hyperbagel.scenes.claims import Claim, Noun
from hyperbagel.scenes.layout import Spec, random_scene
from hyperbagel.scenes.palette import COLORS, NUMBERS, OPPOSITE, PLACES, RELATIONS, SHAPES, SIZES, plural
from hyperbagel.scenes.world import Scene, relation

_COLORS = tuple(COLORS)


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its only right answer, and what it asks for: count, color, place, shape, size, background, yes_no."""

    topic: str
    text: str
    answer: str


def understanding_scene(split: str, rng: Random) -> Scene:
    """A scene of 1 to 4 objects; about a third have several objects of one shape, which makes counting worthwhile."""
    specs = [Spec()] * rng.choices((1, 2, 3, 4), (2, 3, 3, 2))[0]
    if rng.random() < 0.4:
        twin = Spec(rng.choice(SHAPES), rng.choice(_COLORS) if rng.random() < 0.3 else None)
        copies = rng.randint(2, 4)
        specs = [twin] * min(copies, len(specs)) + specs[copies:]
        if Claim((Noun(twin.shape or "", twin.color),)).is_held_out(split):
            return understanding_scene(split, rng)
    return random_scene(specs, split, rng)


def random_question(scene: Scene, split: str, rng: Random) -> Question:
    """A question that `split` may ask about a scene with at least one object."""
    return rng.choice(_QUESTIONS)(scene, split, rng)


def _count(scene: Scene, split: str, rng: Random) -> Question:
    scope = rng.choice(("all", "shape", "color", "both"))
    item = rng.choice(scene.objects)
    shape = rng.choice((item.shape, rng.choice(SHAPES))) if scope in ("shape", "both") else None
    color = rng.choice((item.color, rng.choice(_COLORS))) if scope in ("color", "both") else None
    if Claim((Noun(shape or "", color),)).is_held_out(split):
        color = None
    kind = plural(" ".join(word for word in (color, shape or "object") if word))
    count = sum(shape in (None, o.shape) and color in (None, o.color) for o in scene.objects)
    return Question("count", f"How many {kind} are there?", NUMBERS[count])


def _color(scene: Scene, split: str, rng: Random) -> Question:
    item = rng.choice(scene.objects)
    alone = sum(o.shape == item.shape for o in scene.objects) == 1
    where = "" if alone and rng.random() < 0.5 else f" in the {scene.place(item)}"
    return Question("color", f"What color is the {item.shape}{where}?", item.color)


def _place(scene: Scene, split: str, rng: Random) -> Question:
    item = rng.choice(scene.objects)
    if sum((o.color, o.shape) == (item.color, item.shape) for o in scene.objects) > 1:
        return _shape(scene, split, rng)
    return Question("place", f"Where is the {item.color} {item.shape}?", scene.place(item))


def _shape(scene: Scene, split: str, rng: Random) -> Question:
    item = rng.choice(scene.objects)
    if rng.random() < 0.5 and sum(o.color == item.color for o in scene.objects) == 1:
        return Question("shape", f"What shape is the {item.color} object?", item.shape)
    return Question("shape", f"What shape is in the {scene.place(item)}?", item.shape)


def _size(scene: Scene, split: str, rng: Random) -> Question:
    item = rng.choice(scene.objects)
    return Question("size", f"Is the {item.shape} in the {scene.place(item)} small or large?", item.size)


def _background(scene: Scene, split: str, rng: Random) -> Question:
    return Question("background", "What color is the background?", scene.background)


_QUESTIONS: Final[tuple[Callable[[Scene, str, Random], Question], ...]] = (
    _count, _count, _count, _color, _color, _color, _place, _place, _place, _shape, _shape, _size, _background,
)  # fmt: skip


def yes_no_question(scene: Scene, split: str, rng: Random, answer: bool | None = None) -> Question:
    """ "Does this picture show ...?", answered as `answer` says, or yes and no alike often.

    A no is a hard negative: a true claim about this very scene with one thing changed, preferably into something else
    that the scene holds (colours of two objects swapped, the opposite relation, one more or less of a kind).
    """
    answer = rng.random() < 0.5 if answer is None else answer
    while True:
        claim = _true_claim(scene, rng)
        if not answer:
            claim = _change(claim, scene, rng)
        fits = claim.is_true(scene) if answer else claim.is_false(scene)
        if fits and not claim.is_held_out(split):
            return Question("yes_no", f"Does this picture show {claim.text()}?", "yes" if answer else "no")


def _true_claim(scene: Scene, rng: Random) -> Claim:
    """A claim drawn from what the scene shows; now and then it is ambiguous, so the caller has to check it."""
    a, b = rng.sample(scene.objects, 2) if len(scene.objects) > 1 else (scene.objects[0], None)
    colored = rng.random() < 0.6
    form = rng.choice(("color", "size", "place", "count", "relation", "relation", "pair", "pair"))
    first = Noun(a.shape, a.color if colored else None)
    if form == "count" and (count := sum(o.shape == a.shape for o in scene.objects)) > 1:
        return Claim((Noun(a.shape, count=count),))
    if form == "size":
        return Claim((Noun(a.shape, a.color, size=a.size),))
    if form == "place":
        return Claim((replace(first, place=scene.place(a)),))
    if b is not None and b.shape != a.shape and form in ("relation", "pair"):
        second = Noun(b.shape, b.color if colored else None)
        return Claim((first, second), relation(a, b) if form == "relation" else None)
    return Claim((first,))


def _change(claim: Claim, scene: Scene, rng: Random) -> Claim:
    """`claim` with one thing changed; whether that makes it false is for the caller to check."""
    nouns = list(claim.nouns)
    if claim.relation and rng.random() < 0.6:
        other = OPPOSITE[claim.relation] if rng.random() < 0.7 else rng.choice(RELATIONS)
        return replace(claim, relation=other)
    if len(nouns) > 1 and nouns[0].color and rng.random() < 0.5:
        swapped = (replace(nouns[0], color=nouns[1].color), replace(nouns[1], color=nouns[0].color))
        return replace(claim, nouns=swapped)
    i = rng.randrange(len(nouns))
    noun = nouns[i]
    present = rng.choice(scene.objects)
    changes = [replace(noun, shape=rng.choice((present.shape, rng.choice(SHAPES))))]
    if noun.color:
        changes.append(replace(noun, color=rng.choice((present.color, rng.choice(_COLORS)))))
    if noun.size:
        changes.append(replace(noun, size=SIZES[noun.size == "small"]))
    if noun.place:
        changes.append(replace(noun, place=rng.choice((scene.place(present), rng.choice(PLACES)))))
    if noun.count > 1:
        changes += [replace(noun, count=rng.choice([n for n in (2, 3, 4) if n != noun.count]))] * 2
    nouns[i] = rng.choice(changes)
    if len({noun.shape for noun in nouns}) < len(nouns):
        return claim
    return replace(claim, nouns=tuple(nouns))
