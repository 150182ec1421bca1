"""Editing samples of the scenes world: each edit in English and in Chinese, with the exact scenes in `meta`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from PIL import Image

from hyperbagel.evaluation.gedit.samples import LANGUAGES, EditSample
from hyperbagel.scenes.drawing import draw
from hyperbagel.scenes.edits import EDIT_KINDS, Edit, random_edit
from hyperbagel.scenes.layout import Spec, random_scene
from hyperbagel.scenes.world import Scene, SceneObject

SCENE_CATEGORIES = EDIT_KINDS
"""The categories of these samples, to be given as `GEditSettings.categories`."""


def scene_edit_samples(per_kind: int = 20, seed: int = 0, split: str = "test") -> list[EditSample]:
    """`per_kind` random edits of every kind, each in both languages; a pure function of its arguments."""
    samples: list[EditSample] = []
    for kind in EDIT_KINDS:
        for number in range(per_kind):
            key = f"{split}-{seed}-{kind}-{number:04d}"
            edit = _random_edit(kind, split, Random(key))
            samples += [edit_sample(edit, key, language) for language in LANGUAGES]
    return samples


def edit_sample(edit: Edit, key: str, language: str) -> EditSample:
    """An edit of the world as a sample; its `meta` is `edit.to_dict()`, which `SceneJudge` needs."""
    source = Image.fromarray(draw(edit.source))
    return EditSample(key, edit.kind, language, edit.instruction(language), source, meta=edit.to_dict())


def _random_edit(kind: str, split: str, rng: Random) -> Edit:
    while True:
        count = rng.choices((1, 2, 3), (3, 4, 3))[0]
        edit = random_edit(random_scene([Spec()] * count, split, rng), split, rng, (kind,))
        if edit is not None:
            return edit


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one object: `before` None if it is added, `after` None if it is removed."""

    before: SceneObject | None
    after: SceneObject | None

    @property
    def in_place(self) -> bool:
        """Whether the object stays where it is, looking different."""
        return (
            self.before is not None
            and self.after is not None
            and (self.before.x, self.before.y) == (self.after.x, self.after.y)
        )

    @property
    def altered(self) -> list[str]:
        """Which of "shape" and "color" become others."""
        if self.before is None or self.after is None:
            return []
        return [name for name in ("shape", "color") if getattr(self.before, name) != getattr(self.after, name)]


@dataclass(frozen=True, slots=True)
class Difference:
    """What an edit changes, and what it must leave alone."""

    source: Scene
    target: Scene
    kept: tuple[SceneObject, ...]
    changes: tuple[Change, ...]

    @property
    def changes_background(self) -> bool:
        """Whether the background gets another tint."""
        return self.source.background != self.target.background


def difference(source: Scene, target: Scene) -> Difference:
    """Pair the objects of two scenes: equal ones are kept, those at one place or of one look are changed."""
    kept = tuple(item for item in source.objects if item in target.objects)
    before = [item for item in source.objects if item not in kept]
    after = [item for item in target.objects if item not in kept]
    changes = []
    for pairs in (_same_position, _same_look):
        for old in list(before):
            new = next((item for item in after if pairs(old, item)), None)
            if new is not None:
                before.remove(old)
                after.remove(new)
                changes.append(Change(old, new))
    return Difference(source, target, kept, (*changes, *_alone(before, after)))


def _same_position(old: SceneObject, new: SceneObject) -> bool:
    return (old.x, old.y) == (new.x, new.y)


def _same_look(old: SceneObject, new: SceneObject) -> bool:
    return (old.shape, old.color, old.radius) == (new.shape, new.color, new.radius)


def _alone(before: Iterable[SceneObject], after: Iterable[SceneObject]) -> Iterable[Change]:
    yield from (Change(old, None) for old in before)
    yield from (Change(None, new) for new in after)
