"""Combinations that training never shows, so that the test split can ask for what was never seen.

Held out are one colour of each shape (8 of the 80 pairs) and about one in nine of the facts "shape A left of shape B"
and "shape A above shape B" ("B right of A" is the same fact as "A left of B"). A training scene holds none of them
at all, be it described or not; the training split neither asks for them nor names them in an instruction.
"""

from __future__ import annotations

from collections.abc import Sequence

from hyperbagel.scenes.palette import COLORS, OPPOSITE, SHAPES
from hyperbagel.scenes.world import SceneObject, relations

_COLOR_NAMES = tuple(COLORS)
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    (_COLOR_NAMES[(3 * i + 1) % len(_COLOR_NAMES)], shape) for i, shape in enumerate(SHAPES)
)
"""(colour, shape) pairs: each shape lacks one colour, no colour lacks two shapes."""
HELD_OUT_RELATIONS: frozenset[tuple[str, str, str]] = frozenset(
    (a, name, b)
    for i, a in enumerate(SHAPES)
    for j, b in enumerate(SHAPES)
    for k, name in enumerate(("left of", "above"))
    if i != j and (3 * i + 4 * j + k) % 10 == 0
)
"""(shape, "left of" or "above", shape)."""

_LOOSE = 0.4  # below GenEval's 0.5, so that no detector's box makes a held-out relation out of a training picture


def is_held_out_relation(a: str, name: str, b: str) -> bool:
    """Whether "a <name> b" (shapes) is held out, in whichever of its two wordings."""
    if name in ("right of", "below"):
        a, name, b = b, OPPOSITE[name], a
    return (a, name, b) in HELD_OUT_RELATIONS


def in_training(objects: Sequence[SceneObject]) -> bool:
    """Whether training may show these objects together: no held-out colour of a shape, no held-out relation."""
    if any((o.color, o.shape) in HELD_OUT_PAIRS for o in objects):
        return False
    for i, a in enumerate(objects):
        for b in objects[:i]:
            if any(is_held_out_relation(a.shape, name, b.shape) for name in relations(a, b, _LOOSE)):
                return False
    return True


def allows(split: str, objects: Sequence[SceneObject]) -> bool:
    """Whether `split` ("train" or "test") may show these objects together. Raises ValueError for another split."""
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}: use train or test")
    return split == "test" or in_training(objects)
