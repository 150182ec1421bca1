"""Scenes: what is in a picture, exactly, and how its objects stand to one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import hypot
from typing import Any

from hyperbagel.scenes.palette import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZE_THRESHOLD

CANVAS = 64
"""Width and height of the world's pictures in pixels."""
GAP = 2.0
"""Least distance in pixels between the boxes of two objects."""
BORDER = 1.0
"""Least distance in pixels between an object's box and the edge of the picture."""
CELL_MARGIN = 2.0
"""Least distance in pixels between an object's centre and a line of the 3x3 grid of places."""
AXIS_MARGIN = 4.0
"""Two objects' offsets along x and y differ by at least this many pixels, so that one axis is the main one."""
CLEAR_RELATION = 0.58
"""Least normalised offset along the main axis; GenEval's rule asks for more than 0.5."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One drawn object. x, y: centre in pixels (pixel i covers [i, i + 1)); radius: half the side of its box.

    Raises ValueError for an unknown shape or colour.
    """

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float

    def __post_init__(self) -> None:
        """Refuse what could not be drawn or described."""
        if self.shape not in SHAPES:
            raise ValueError(f"unknown shape {self.shape!r}: use one of {', '.join(SHAPES)}")
        if self.color not in COLORS:
            raise ValueError(f"unknown color {self.color!r}: use one of {', '.join(COLORS)}")
        if self.size != size_of(self.radius):
            raise ValueError(f"an object of radius {self.radius} is {size_of(self.radius)}, not {self.size!r}")


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture's exact content; objects are kept in reading order of their places.

    Raises ValueError for an unknown background or an object that reaches beyond the picture.
    """

    objects: tuple[SceneObject, ...]
    background: str
    width: int = CANVAS
    height: int = CANVAS

    def __post_init__(self) -> None:
        """Sort the objects and refuse what could not be drawn."""
        if self.background not in BACKGROUNDS:
            raise ValueError(f"unknown background {self.background!r}: use one of {', '.join(BACKGROUNDS)}")
        for o in self.objects:
            if o.x < o.radius or o.y < o.radius or o.x + o.radius > self.width or o.y + o.radius > self.height:
                raise ValueError(f"{o} reaches beyond the {self.width}x{self.height} picture")
        ordered = sorted(self.objects, key=lambda o: (PLACES.index(self.place(o)), o.y, o.x))
        object.__setattr__(self, "objects", tuple(ordered))

    def place(self, item: SceneObject) -> str:
        """Name of the cell of the 3x3 grid in which `item`'s centre lies."""
        return PLACES[int(3 * item.y / self.height) * 3 + int(3 * item.x / self.width)]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        objects = [{name: getattr(o, name) for name in _OBJECT_FIELDS} for o in self.objects]
        return {"objects": objects, "background": self.background, "width": self.width, "height": self.height}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scene:
        """Inverse of `to_dict`. Raises ValueError on missing or unknown keys and on impossible values."""
        try:
            objects = tuple(SceneObject(**o) for o in data["objects"])
            return cls(**{**data, "objects": objects})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a scene ({error}): keys objects, background, width, height are needed") from error


_OBJECT_FIELDS = tuple(field.name for field in fields(SceneObject))


def size_of(radius: float) -> str:
    """ "small" or "large"."""
    return "large" if radius >= SIZE_THRESHOLD else "small"


def relations(a: SceneObject, b: SceneObject, threshold: float = 0.5) -> frozenset[str]:
    """The relations of `a` to `b` by GenEval's position rule, whose own threshold is 0.5 (strict).

    The boxes of both objects are taken as 2 * radius wide and high.
    """
    ox, oy = a.x - b.x, a.y - b.y
    slack = 0.2 * (a.radius + b.radius)
    limit = threshold * hypot(ox, oy)
    found = []
    if abs(ox) - slack > limit:
        found.append("left of" if ox < 0 else "right of")
    if abs(oy) - slack > limit:
        found.append("above" if oy < 0 else "below")
    return frozenset(found)


def relation(a: SceneObject, b: SceneObject) -> str | None:
    """The one relation of `a` to `b` that texts state: along the main axis; None where that would be unclear."""
    ox, oy = a.x - b.x, a.y - b.y
    if abs(abs(ox) - abs(oy)) < AXIS_MARGIN:
        return None
    main = max(abs(ox), abs(oy)) - 0.2 * (a.radius + b.radius)
    if main <= CLEAR_RELATION * hypot(ox, oy):
        return None
    if abs(ox) > abs(oy):
        return "left of" if ox < 0 else "right of"
    return "above" if oy < 0 else "below"


def is_clear(objects: Sequence[SceneObject], size: int = CANVAS) -> bool:
    """Whether everything that texts may say of the scene is unambiguous.

    No two boxes come closer than `GAP`, each lies `BORDER` inside, each centre is `CELL_MARGIN` away from the lines of
    the grid of places, no place holds two objects, and every pair has a clear `relation`.
    """
    third = size / 3
    cells = set()
    for i, a in enumerate(objects):
        if not all(a.radius + BORDER <= c <= size - BORDER - a.radius for c in (a.x, a.y)):
            return False
        if any(abs(c - line) < CELL_MARGIN for c in (a.x, a.y) for line in (third, 2 * third)):
            return False
        cells.add((int(a.x / third), int(a.y / third)))
        for b in objects[:i]:
            if max(abs(a.x - b.x), abs(a.y - b.y)) < a.radius + b.radius + GAP or relation(a, b) is None:
                return False
    return len(cells) == len(objects)
