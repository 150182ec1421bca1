"""The three splits of the scenes world, by combinations that training never shows and the other two ask for.

`train` is what models learn from, `val` is for every choice that is made on the way, `test` for what is reported in
the end. For `test`, one colour of each shape (8 of the 80 pairs) is held out of `train` and `val`, and about one in
nine of the facts "shape A left of shape B" and "shape A above shape B" ("B right of A" is the same fact as "A left of
B"). For `val`, half as many others are held out of `train`. A scene of a split shows nothing that is held out of it, be
it described or not; nor is it asked for, or named in an instruction. `test` may show everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hyperbagel.scenes.palette import COLORS, OPPOSITE, SHAPES
from hyperbagel.scenes.world import SceneObject, relations

SPLITS: Final = ("train", "val", "test")

_COLOR_NAMES = tuple(COLORS)
HELD_OUT_PAIRS: Final[dict[str, frozenset[tuple[str, str]]]] = {
    "val": frozenset((_COLOR_NAMES[(3 * i + 4) % 10], shape) for i, shape in enumerate(SHAPES) if i % 2 == 0),
    "test": frozenset((_COLOR_NAMES[(3 * i + 1) % 10], shape) for i, shape in enumerate(SHAPES)),
}
"""Split -> the (colour, shape) pairs held out for it, at most one of each shape and of each colour."""
_FACTS = [
    ((a, name, b), 3 * i + 4 * j + k)
    for i, a in enumerate(SHAPES)
    for j, b in enumerate(SHAPES)
    for k, name in enumerate(("left of", "above"))
    if i != j
]
HELD_OUT_RELATIONS: Final[dict[str, frozenset[tuple[str, str, str]]]] = {
    "val": frozenset(fact for fact, number in _FACTS if number % 20 == 5),
    "test": frozenset(fact for fact, number in _FACTS if number % 10 == 0),
}
"""Split -> the (shape, "left of" or "above", shape) held out for it."""

_LATER: Final = {"train": ("val", "test"), "val": ("test",), "test": ()}
_LOOSE = 0.4  # below GenEval's 0.5, so that no detector's box makes a held-out relation out of a training picture


def check_split(split: str) -> None:
    """Raises ValueError unless `split` is one of `SPLITS`."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")


def lacks_pair(split: str, color: str | None, shape: str) -> bool:
    """Whether things of this shape and colour are held out of `split`."""
    return any((color, shape) in HELD_OUT_PAIRS[later] for later in _LATER[split])


def lacks_relation(split: str, a: str, name: str, b: str) -> bool:
    """Whether "a <name> b" (shapes) is held out of `split`, in whichever of its two wordings."""
    if name in ("right of", "below"):
        a, name, b = b, OPPOSITE[name], a
    return any((a, name, b) in HELD_OUT_RELATIONS[later] for later in _LATER[split])


def allows(split: str, objects: Sequence[SceneObject]) -> bool:
    """Whether `split` may show these objects together. Raises ValueError for an unknown split."""
    check_split(split)
    if split == "test":
        return True
    if any(lacks_pair(split, o.color, o.shape) for o in objects):
        return False
    for i, a in enumerate(objects):
        for b in objects[:i]:
            if any(lacks_relation(split, a.shape, name, b.shape) for name in relations(a, b, _LOOSE)):
                return False
    return True
