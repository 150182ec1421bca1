"""The exact judge of the scenes world: reads the edited picture back and compares it with what was asked for.

Semantic consistency has the two scores that VIEScore asks for: *editing success* (is what should change as asked?)
and *overediting* (is everything else as it was?). An instruction leaves freedom that the judge must grant: where in
its cell of the 3x3 grid an added or moved object lies is the editor's choice. Perceptual quality has two scores too:
*shapes* (does every object have one of the world's shapes?) and *artifacts* (is every pixel as in a clean drawing?).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot, prod
from typing import Any

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from hyperbagel.evaluation.gedit.questions import prepare_images
from hyperbagel.evaluation.gedit.samples import EditSample, JudgeScore, Rating
from hyperbagel.evaluation.gedit.scene_picture import Picture, disc, read_picture
from hyperbagel.evaluation.gedit.scene_world import Change, Difference, difference
from hyperbagel.evaluation.geneval.scene_parser import FoundObject
from hyperbagel.scenes.palette import PLACES
from hyperbagel.scenes.world import Scene, SceneObject, size_of

WRONG_ASPECT = 0.4
"""Factor on success for each thing about a changed object (shape, colour) that came out wrong."""
WRONG_SIZE = 0.7
"""The same for its size."""
LOST = 0.5
"""Factor on overediting for each thing that should have stayed as it was and did not, and for each new object."""
STILL = 2.0
"""Pixels by which an untouched object may seem to have moved; 3 times that far it counts as lost."""
SAME_RADIUS = 1.5
"""Pixels by which the radius of an untouched object may differ."""
NEARBY = 10.0
"""Pixels within which an object of another look is taken for the expected one."""


class SceneJudge:
    """Exact verdicts on edits of the scenes world; see the module. `meta` holds the scenes `source` and `target`."""

    name = "scene-judge"
    version = "1"

    def score_sample(self, sample: EditSample, edited: Image.Image) -> JudgeScore:
        """The verdict on `edited`. Raises ValueError if `sample.meta` lacks the exact scenes."""
        asked = _asked_for(sample.key, sample.meta)
        _, upright = prepare_images(sample.source, edited)
        picture = read_picture(np.asarray(upright))
        matches = _match(asked, picture.objects)
        consistency = (10 * _success(asked, matches, picture), 10 * _restraint(asked, matches, picture))
        return JudgeScore(Rating(consistency), Rating((picture.shapes, picture.artifacts)))


def _asked_for(key: str, meta: Mapping[str, Any]) -> Difference:
    try:
        return difference(Scene.from_dict(meta["source"]), Scene.from_dict(meta["target"]))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"sample {key!r}: meta has no exact scenes ({error}); SceneJudge needs scenes as `source` and `target`, "
            "as `scene_edit_samples` makes them"
        ) from error


@dataclass(frozen=True, slots=True)
class _Matches:
    """Which found object is which expected one; `rest` are none of them."""

    kept: tuple[tuple[SceneObject, FoundObject | None], ...]
    changed: tuple[tuple[Change, FoundObject | None], ...]
    rest: tuple[FoundObject, ...]

    def remains_of(self, item: SceneObject) -> bool:
        """Whether something lies where `item` was (and should no longer be)."""
        return any(_lies_at(item, other) for other in self.rest)

    def extra(self) -> int:
        """Number of new objects, those not counted that lie where something was to go away."""
        gone = [change.before for change, _ in self.changed if change.before is not None]
        return sum(not any(_lies_at(item, other) for item in gone) for other in self.rest)


def _match(asked: Difference, found: Sequence[FoundObject]) -> _Matches:
    """The assignment of found objects to expected ones that differs least in look and position."""
    wanted = [change for change in asked.changes if change.after is not None]
    costs = [[_cost_kept(item, other, asked) for other in found] for item in asked.kept]
    costs += [[_cost(change, other, asked.target) for other in found] for change in wanted]
    chosen: dict[int, int] = {}
    if costs and found:
        chosen = {
            int(row): int(column)
            for row, column in zip(*linear_sum_assignment(np.array(costs)), strict=True)
            if costs[row][column] < _IMPOSSIBLE
        }
    by_row = [found[chosen[row]] if row in chosen else None for row in range(len(costs))]
    changed = dict(zip(wanted, by_row[len(asked.kept) :], strict=True))
    return _Matches(
        kept=tuple(zip(asked.kept, by_row, strict=False)),
        changed=tuple((change, changed.get(change)) for change in asked.changes),
        rest=tuple(other for column, other in enumerate(found) if column not in chosen.values()),
    )


_IMPOSSIBLE = 1e3


def _distance(a: SceneObject | FoundObject, b: SceneObject | FoundObject) -> float:
    return hypot(a.x - b.x, a.y - b.y)


def _lies_at(item: SceneObject, other: FoundObject) -> bool:
    return _distance(item, other) < item.radius


def _wrong_looks(item: SceneObject, other: FoundObject) -> int:
    return (item.shape != other.shape) + (item.color != other.color)


def _cost_in_place(item: SceneObject, other: FoundObject) -> float:
    if _distance(item, other) > NEARBY and _wrong_looks(item, other):
        return _IMPOSSIBLE
    return _distance(item, other) / NEARBY + _wrong_looks(item, other)


def _cost_kept(item: SceneObject, other: FoundObject, asked: Difference) -> float:
    """As `_cost_in_place`; but what lies where a changed object was is that one, however much it looks like `item`."""
    if any(change.before is not None and _lies_at(change.before, other) for change in asked.changes):
        return _IMPOSSIBLE
    return _cost_in_place(item, other)


def _cost(change: Change, other: FoundObject, scene: Scene) -> float:
    """As `_cost_in_place`, but with the whole cell to go to, and dearer than what is surely something else."""
    assert change.after is not None
    if change.in_place:
        return _cost_in_place(change.after, other)
    return 0.5 + _outside(other, change.after, scene) / NEARBY + 1.5 * _wrong_looks(change.after, other)


def _outside(other: FoundObject | SceneObject, item: SceneObject, scene: Scene) -> float:
    """Pixels from a centre to the cell (of the 3x3 grid) of `item`; 0 within it."""
    row, column = divmod(PLACES.index(scene.place(item)), 3)
    width, height = scene.width / 3, scene.height / 3
    dx = max(column * width - other.x, other.x - (column + 1) * width, 0)
    dy = max(row * height - other.y, other.y - (row + 1) * height, 0)
    return hypot(dx, dy)


def _success(asked: Difference, matches: _Matches, picture: Picture) -> float:
    """How far everything that was asked for happened, 0..1."""
    successes = [
        _change_success(change, found, asked.target) * _cleared(change, matches, picture)
        for change, found in matches.changed
    ]
    if asked.changes_background:
        successes.append(_steep(picture.tinted(asked.target.background)))
    return float(np.mean(successes)) if successes else 1.0


def _change_success(change: Change, found: FoundObject | None, target: Scene) -> float:
    """How far an object came out as asked for, 0..1; whether its old place is clear is another matter."""
    before, after = change.before, change.after
    if after is None:
        return 1.0
    if found is None:
        return 0.0
    if before is None:
        return _look(after, found) * _arrival(_outside(found, after, target))
    if change.in_place:
        right = [getattr(found, name) == getattr(after, name) for name in change.altered]
        return prod(1.0 if one else WRONG_ASPECT for one in right) if any(right) else 0.0
    way = _outside(before, after, target)
    return 1 - min(_outside(found, after, target) / way, 1) if way else 1.0


def _cleared(change: Change, matches: _Matches, picture: Picture) -> float:
    """How far the place of an object that went away is background now, 0..1; a copy left behind costs most."""
    if change.before is None or change.in_place:
        return 1.0
    height, width = picture.free.shape
    share = picture.cleared(disc(change.before.x, change.before.y, change.before.radius, (height, width)))
    cleared = 0.0 if matches.remains_of(change.before) else _steep(share)
    return cleared if change.after is None else WRONG_ASPECT + (1 - WRONG_ASPECT) * cleared


def _steep(share: float) -> float:
    """Share of pixels that are right -> 0..1: half of them wrong is nothing."""
    return max(0.0, 2 * share - 1)


def _look(item: SceneObject, found: FoundObject) -> float:
    right_size = abs(found.radius - item.radius) <= SAME_RADIUS or size_of(found.radius) == item.size
    return WRONG_ASPECT ** _wrong_looks(item, found) * (1.0 if right_size else WRONG_SIZE)


def _arrival(outside: float) -> float:
    """1 in the cell, less the farther away, but never nothing: the object is there."""
    return max(1 - outside / NEARBY, 0.2)


def _restraint(asked: Difference, matches: _Matches, picture: Picture) -> float:
    """How far all that was not asked for is as before, 0..1: every loss of a whole thing halves it."""
    losses = [_loss(item, found, in_place=True) for item, found in matches.kept]
    losses += [
        _loss(change.after, found, change.in_place, change.altered)
        for change, found in matches.changed
        if change.before is not None and change.after is not None
    ]
    losses += [1.0] * matches.extra()
    if not asked.changes_background:
        losses.append(1 - _steep(picture.tinted(asked.source.background)))
    return prod(1 - (1 - LOST) * loss for loss in losses)


def _loss(item: SceneObject, found: FoundObject | None, in_place: bool, free: Sequence[str] = ()) -> float:
    """How much of an object is not as it should have stayed, 0..1. free: aspects that were to change."""
    if found is None:
        return 1.0
    losses = [float(getattr(item, name) != getattr(found, name)) for name in ("shape", "color") if name not in free]
    losses.append(float(np.clip((abs(found.radius - item.radius) - SAME_RADIUS) / SAME_RADIUS, 0, 1)))
    if in_place:
        losses.append(float(np.clip((_distance(item, found) - STILL) / (2 * STILL), 0, 1)))
    return max(losses)
