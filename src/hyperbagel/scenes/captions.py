"""Long captions in one canonical wording, and the facts that such a caption states."""

from __future__ import annotations

import re
from typing import Final

from hyperbagel.scenes.palette import BACKGROUNDS, COLORS, NUMBERS, PLACES, RELATIONS, SHAPES, SIZES
from hyperbagel.scenes.world import Scene, relation

Fact = tuple[str, ...]
"""A checkable statement: (what, value), (what, ordinal of the object, value) or ("relation", ordinal, name, other)."""

ORDINALS: Final = ("first", "second", "third", "fourth")


def _any(words: tuple[str, ...] | dict[str, tuple[int, int, int]]) -> str:
    return "(" + "|".join(sorted(words, key=len, reverse=True)) + ")"


_ORDINAL = _any(ORDINALS)
_COUNT = re.compile(rf"the picture shows exactly {_any(NUMBERS)} objects? on a plain {_any(BACKGROUNDS)} background")
_OBJECT = re.compile(rf"{_ORDINAL}, a {_any(SIZES)} {_any(COLORS)} {_any(SHAPES)} in the {_any(PLACES)}")
_RELATION = re.compile(rf"the {_ORDINAL} is {_any(RELATIONS)} the {_ORDINAL}")


def caption(scene: Scene) -> str:
    """The canonical caption of a clear scene of 1 to 4 objects.

    Count and background, then each object (in reading order) with size, colour, shape and place, then the relation
    of each object to the next. 40 to 80 tokens for 2 to 4 objects.
    """
    count = len(scene.objects)
    noun = "object" if count == 1 else "objects"
    sentences = [f"The picture shows exactly {NUMBERS[count]} {noun} on a plain {scene.background} background."]
    for ordinal, o in zip(ORDINALS, scene.objects, strict=False):
        sentences.append(f"{ordinal.capitalize()}, a {o.size} {o.color} {o.shape} in the {scene.place(o)}.")
    for i, (a, b) in enumerate(zip(scene.objects, scene.objects[1:], strict=False)):
        sentences.append(f"The {ORDINALS[i]} is {relation(a, b)} the {ORDINALS[i + 1]}.")
    return " ".join(sentences)


def caption_facts(scene: Scene) -> tuple[Fact, ...]:
    """Every fact that `caption(scene)` states, in its order."""
    facts: list[Fact] = [("count", NUMBERS[len(scene.objects)]), ("background", scene.background)]
    for ordinal, o in zip(ORDINALS, scene.objects, strict=False):
        facts += [("size", ordinal, o.size), ("color", ordinal, o.color)]
        facts += [("shape", ordinal, o.shape), ("place", ordinal, scene.place(o))]
    for i, (a, b) in enumerate(zip(scene.objects, scene.objects[1:], strict=False)):
        facts.append(("relation", ORDINALS[i], str(relation(a, b)), ORDINALS[i + 1]))
    return tuple(facts)


def parse_caption(text: str) -> tuple[Fact, ...]:
    """The facts that a caption states, in its order.

    A sentence that is not in the canonical wording becomes one fact ("unparsed", sentence): it is never dropped, and
    it is no fact of any scene, so it counts as wrong.
    """
    facts: list[Fact] = []
    for sentence in filter(None, (part.strip() for part in text.lower().split("."))):
        if match := _COUNT.fullmatch(sentence):
            facts += [("count", match[1]), ("background", match[2])]
        elif match := _OBJECT.fullmatch(sentence):
            facts += [(what, match[1], match[i]) for i, what in enumerate(("size", "color", "shape", "place"), start=2)]
        elif match := _RELATION.fullmatch(sentence):
            facts.append(("relation", match[1], match[2], match[3]))
        else:
            facts.append(("unparsed", sentence))
    return tuple(facts)
