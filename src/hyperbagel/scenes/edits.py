"""Edits: one change to a scene with an instruction in English and Chinese that names it without ambiguity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from hyperbagel.scenes.heldout import allows
from hyperbagel.scenes.layout import Spec, draw_object, random_position, random_scene
from hyperbagel.scenes.palette import BACKGROUNDS, CHINESE, COLORS, PLACES, SHAPES, SIZES, with_article
from hyperbagel.scenes.world import Scene, SceneObject, is_clear

LANGUAGES: Final = ("en", "cn")
_MAX_TRIES = 200
_COLORS, _BACKGROUNDS = tuple(COLORS), tuple(BACKGROUNDS)


@dataclass(frozen=True, slots=True)
class Edit:
    """One change. subject: index into `source.objects` of the object that is changed or removed, else None."""

    kind: str
    instruction_en: str
    instruction_cn: str
    source: Scene
    target: Scene
    subject: int | None = None

    def instruction(self, language: str) -> str:
        """The instruction in "en" or "cn"."""
        if language not in LANGUAGES:
            raise ValueError(f"unknown language {language!r}: use en or cn")
        return self.instruction_en if language == "en" else self.instruction_cn

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "kind": self.kind, "instruction_en": self.instruction_en, "instruction_cn": self.instruction_cn,
            "source": self.source.to_dict(), "target": self.target.to_dict(), "subject": self.subject,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Edit:
        """Inverse of `to_dict`."""
        return cls(**data | {key: Scene.from_dict(data[key]) for key in ("source", "target")})


def reference(item: SceneObject, scene: Scene, rng: Random) -> tuple[str, str]:
    """A definite description that fits only `item`, in English and Chinese."""

    def alone(*names: str) -> bool:
        return sum(all(getattr(o, name) == getattr(item, name) for name in names) for o in scene.objects) == 1

    color, shape, size = item.color, item.shape, item.size
    options = [(f"the {color} {shape} in the {scene.place(item)}", f"{CHINESE[scene.place(item)]}的{_cn(item)}")]
    if alone("shape", "color"):
        options = [(f"the {color} {shape}", _cn(item))]
    elif alone("shape", "color", "size"):
        options = [(f"the {size} {color} {shape}", f"{CHINESE[size]}的{_cn(item)}")]
    if alone("shape"):
        options.append((f"the {shape}", CHINESE[shape]))
    return rng.choice(options)


def _cn(item: Spec | SceneObject) -> str:
    return f"{CHINESE[item.color or '']}{CHINESE[item.shape or '']}"


def _other(options: Sequence[str], current: str, rng: Random) -> str:
    return rng.choice([option for option in options if option != current])


def _swap(scene: Scene, subject: int, changed: SceneObject | None) -> Scene:
    objects = list(scene.objects)
    objects[subject : subject + 1] = [changed] if changed else []
    return replace(scene, objects=tuple(objects))


def _recolor(scene: Scene, rng: Random) -> Edit:
    subject = rng.randrange(len(scene.objects))
    item = scene.objects[subject]
    color = _other(_COLORS, item.color, rng)
    en, cn = reference(item, scene, rng)
    target = _swap(scene, subject, replace(item, color=color))
    return Edit("recolor", f"Make {en} {color}.", f"把{cn}变成{CHINESE[color]}。", scene, target, subject)


def _remove(scene: Scene, rng: Random) -> Edit:
    subject = rng.randrange(len(scene.objects))
    en, cn = reference(scene.objects[subject], scene, rng)
    return Edit("remove", f"Remove {en}.", f"去掉{cn}。", scene, _swap(scene, subject, None), subject)


def _replace(scene: Scene, rng: Random) -> Edit:
    subject = rng.randrange(len(scene.objects))
    item = scene.objects[subject]
    new = replace(item, shape=_other(SHAPES, item.shape, rng), color=rng.choice(_COLORS))
    en, cn = reference(item, scene, rng)
    text = f"Replace {en} with {with_article(f'{new.color} {new.shape}')}."
    return Edit("replace", text, f"把{cn}换成{_cn(new)}。", scene, _swap(scene, subject, new), subject)


def _move(scene: Scene, rng: Random) -> Edit:
    subject = rng.randrange(len(scene.objects))
    item = scene.objects[subject]
    place = _other(PLACES, scene.place(item), rng)
    x, y = random_position(place, item.radius, rng)
    en, cn = reference(item, scene, rng)
    target = _swap(scene, subject, replace(item, x=x, y=y))
    return Edit("move", f"Move {en} to the {place}.", f"把{cn}移到{CHINESE[place]}。", scene, target, subject)


def _add(scene: Scene, rng: Random) -> Edit:
    place = rng.choice(PLACES)
    spec = Spec(rng.choice(SHAPES), rng.choice(_COLORS), rng.choice(SIZES))
    item = draw_object(spec, place, len(scene.objects) > 1, rng)
    phrase = with_article(f"{spec.size} {spec.color} {spec.shape}")
    cn = f"在{CHINESE[place]}添加一个{CHINESE[item.size]}的{_cn(item)}。"
    target = replace(scene, objects=(*scene.objects, item))
    return Edit("add", f"Add {phrase} in the {place}.", cn, scene, target)


def _background(scene: Scene, rng: Random) -> Edit:
    color = _other(_BACKGROUNDS, scene.background, rng)
    target = replace(scene, background=color)
    return Edit("background", f"Change the background to {color}.", f"把背景改成{CHINESE[color]}。", scene, target)


_EDITS: Final[dict[str, Callable[[Scene, Random], Edit]]] = {
    "recolor": _recolor, "add": _add, "remove": _remove, "replace": _replace, "move": _move, "background": _background,
}  # fmt: skip
EDIT_KINDS: Final = tuple(_EDITS)
REFERRING_KINDS: Final = ("remove", "replace")
"""Kinds that name an object which is not to be seen any more; elsewhere, what is named is drawn."""


def random_edit(scene: Scene, split: str, rng: Random, kinds: Sequence[str] = EDIT_KINDS) -> Edit | None:
    """An edit of one of `kinds` that leaves a clear scene of 1 to 4 objects which `split` may show.

    scene has at least one object. Returns None if none turns up (a full scene may have no room, say, to move anything).
    """
    for _ in range(_MAX_TRIES):
        kind = rng.choice(kinds)
        count = len(scene.objects)
        if (kind == "remove" and count < 2) or (kind == "add" and count > 3):
            continue
        edit = _EDITS[kind](scene, rng)
        if is_clear(edit.target.objects) and allows(split, edit.target.objects):
            return edit
    return None


def referring_edit(split: str, rng: Random) -> Edit:
    """An edit of one of `REFERRING_KINDS` in a scene of two or three objects."""
    while True:
        scene = random_scene([Spec()] * rng.choice((2, 3)), split, rng)
        if edit := random_edit(scene, split, rng, (rng.choice(REFERRING_KINDS),)):
            return edit


def random_edits(turns: int, split: str, rng: Random) -> list[Edit]:
    """A chain of `turns` edits, each one's source being the target before it, of a random first scene."""
    while True:
        scene = random_scene([Spec()] * rng.choices((1, 2, 3), (3, 4, 3))[0], split, rng)
        edits: list[Edit] = []
        while len(edits) < turns and (edit := random_edit(scene, split, rng, (rng.choice(EDIT_KINDS),))):
            edits.append(edit)
            scene = edit.target
        if len(edits) == turns:
            return edits
