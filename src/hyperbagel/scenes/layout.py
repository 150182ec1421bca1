"""Random scenes that show given things and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from random import Random

from hyperbagel.scenes.heldout import allows
from hyperbagel.scenes.palette import BACKGROUNDS, COLORS, PLACES, SHAPES
from hyperbagel.scenes.world import BORDER, CANVAS, CELL_MARGIN, Scene, SceneObject, is_clear

_COLORS, _BACKGROUNDS = tuple(COLORS), tuple(BACKGROUNDS)
_MAX_TRIES = 300
_TRIES_PER_OBJECT = 8
# Radii in half pixels. Fewer objects are drawn larger, which models learn faster; the two sizes stay disjoint.
_RADII = {
    ("small", False): (16, 18), ("large", False): (22, 28),
    ("small", True): (14, 18), ("large", True): (22, 23),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spec:
    """What is known of an object to be drawn; None leaves it to chance."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    place: str | None = None


def draw_object(spec: Spec, place: str, crowded: bool, rng: Random) -> SceneObject:
    """An object as `spec` says, somewhere in `place`, at whole pixels. crowded: whether it shares with 2 or more."""
    size = spec.size or ("large" if rng.random() < (0.35 if crowded else 0.7) else "small")
    low, high = _RADII[size, crowded]
    radius = rng.randint(low, high) / 2
    x, y = random_position(place, radius, rng)
    return SceneObject(spec.shape or rng.choice(SHAPES), spec.color or rng.choice(_COLORS), size, x, y, radius)


def random_position(place: str, radius: float, rng: Random) -> tuple[float, float]:
    """x and y in whole pixels for an object of `radius` in `place`."""
    row, column = divmod(PLACES.index(place), 3)
    return _coordinate(column, radius, rng), _coordinate(row, radius, rng)


def _coordinate(cell: int, radius: float, rng: Random) -> float:
    """A whole-pixel coordinate within a third of the canvas, with all margins kept."""
    third = CANVAS / 3
    low = max(cell * third + CELL_MARGIN if cell else 0, radius + BORDER)
    high = min((cell + 1) * third - CELL_MARGIN if cell < 2 else CANVAS, CANVAS - radius - BORDER)
    return float(rng.randint(ceil(low), floor(high)))


def random_scene(
    specs: Sequence[Spec],
    split: str,
    rng: Random,
    background: str | None = None,
    accept: Callable[[Sequence[SceneObject]], bool] | None = None,
) -> Scene:
    """A clear scene of exactly one object per spec, which `split` may show and `accept` (objects in the order of
    `specs`) agrees with.

    Raises ValueError if no such scene turns up, which means that the demands contradict one another.
    """
    for _ in range(_MAX_TRIES):
        objects = _place_in_turn(specs, split, rng)
        if objects is not None and (accept is None or accept(objects)):
            return Scene(tuple(objects), background or rng.choice(_BACKGROUNDS))
    raise ValueError(f"no {split} scene fulfils {specs}")


def _place_in_turn(specs: Sequence[Spec], split: str, rng: Random) -> list[SceneObject] | None:
    """One object per spec, each tried a few times beside those before it; None at a dead end."""
    objects: list[SceneObject] = []
    free = list(PLACES)
    for spec in specs:
        for _ in range(_TRIES_PER_OBJECT):
            place = spec.place or rng.choice(free)
            item = draw_object(spec, place, len(specs) > 2, rng)
            if is_clear([*objects, item]) and allows(split, [*objects, item]):
                break
        else:
            return None
        objects.append(item)
        if place in free:
            free.remove(place)
    return objects
