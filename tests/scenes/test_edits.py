"""Edits change what they say and nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from hyperbagel.scenes import EDIT_KINDS, Edit, Scene, SceneObject, draw, random_edit, sample
from hyperbagel.scenes.edits import random_edits, reference
from hyperbagel.scenes.palette import CHINESE
from hyperbagel.scenes.world import is_clear


def edits(split: str, count: int) -> list[Edit]:
    """Edits of single-turn and multi-turn documents."""
    documents = [sample(split, 7, i, kind).document for kind in ("editing", "multi_turn") for i in range(count)]
    return [Edit.from_dict(data) for document in documents for data in document["meta"]["edits"]]


def box(item: SceneObject) -> tuple[slice, slice]:
    """Pixels that an object can touch."""
    n = int(item.radius) + 2
    x, y = int(item.x), int(item.y)
    return slice(max(y - n, 0), y + n), slice(max(x - n, 0), x + n)


def test_only_the_edit_differs() -> None:
    kinds: Counter[str] = Counter()
    for edit in edits("test", 120):
        kinds[edit.kind] += 1
        before, after = set(edit.source.objects), set(edit.target.objects)
        gone, new = before - after, after - before
        subject = None if edit.subject is None else edit.source.objects[edit.subject]
        expected = {"add": (0, 1), "remove": (1, 0), "background": (0, 0)}.get(edit.kind, (1, 1))
        assert (len(gone), len(new)) == expected
        assert gone <= {subject}
        assert (edit.source.background == edit.target.background) == (edit.kind != "background")
        if len(gone) == len(new) == 1:
            old, item = gone.pop(), new.pop()
            changed = {name for name in item.__slots__ if getattr(old, name) != getattr(item, name)}
            assert changed <= {"recolor": {"color"}, "replace": {"shape", "color"}, "move": {"x", "y"}}[edit.kind]
        assert is_clear(edit.target.objects)
    assert set(kinds) == set(EDIT_KINDS) and min(kinds.values()) > 40


def test_other_pixels_are_identical() -> None:
    for edit in edits("train", 60):
        if edit.kind == "background":
            continue
        touched = np.zeros((64, 64), bool)
        for item in set(edit.source.objects) ^ set(edit.target.objects):
            touched[box(item)] = True
        different = (draw(edit.source) != draw(edit.target)).any(-1)
        assert different.any() and not (different & ~touched).any()


def test_instructions_name_the_change() -> None:
    for edit in edits("test", 120):
        new = set(edit.target.objects) - set(edit.source.objects)
        wanted = []
        if edit.kind == "background":
            wanted = [edit.target.background]
        for item in new:
            place = edit.target.place(item)
            wanted = {
                "recolor": [item.color], "replace": [item.color, item.shape], "move": [place],
                "add": [item.size, item.color, item.shape, place],
            }[edit.kind]  # fmt: skip
        assert all(word in edit.instruction_en for word in wanted), edit
        assert all(CHINESE[word] in edit.instruction_cn for word in wanted), edit
        assert edit.instruction("en") == edit.instruction_en and edit.instruction("cn") == edit.instruction_cn


def test_references_fit_one_object_only() -> None:
    rng = Random(0)
    for edit in edits("test", 120):
        scene = edit.source
        for item in scene.objects:
            english, chinese = reference(item, scene, rng)
            description, _, place = english.removeprefix("the ").partition(" in the ")
            words = set(description.split())
            fits = [
                o for o in scene.objects
                if words <= {o.size, o.color, o.shape} and (not place or place == scene.place(o))
            ]  # fmt: skip
            assert fits == [item], (english, scene)
            assert CHINESE[item.shape] in chinese
            others = [reference(o, scene, Random(s)) for o in scene.objects if o != item for s in range(4)]
            assert chinese not in {cn for _, cn in others}


def test_turns_follow_one_another() -> None:
    turns = Counter()
    for i in range(60):
        document = sample("train", 8, i, "multi_turn").document
        meta = document["meta"]
        chain = [Edit.from_dict(data) for data in meta["edits"]]
        turns[len(chain)] += 1
        scenes = [Scene.from_dict(data) for data in meta["scenes"]]
        assert [edit.source for edit in chain] == scenes[:-1] and [edit.target for edit in chain] == scenes[1:]
        texts = [s["text"] for s in document["segments"] if s["type"] == "text"]
        assert texts == [edit.instruction(meta["language"]) for edit in chain]
        losses = [s["loss"] for s in document["segments"] if s["type"] == "image"]
        assert losses == [False] + [True] * len(chain)
    assert set(turns) == {2, 3, 4, 5}
    assert len(random_edits(1, "test", Random(0))) == 1


def test_referring_edits_take_away_one_of_several_objects() -> None:
    kinds, languages = Counter(), Counter()
    for i in range(60):
        meta = sample("train", 8, i, "referring").document["meta"]
        (edit,) = (Edit.from_dict(data) for data in meta["edits"])
        assert edit.subject is not None and len(edit.source.objects) in (2, 3)
        assert edit.source.objects[edit.subject] not in edit.target.objects
        kinds[edit.kind] += 1
        languages[meta["language"]] += 1
    assert set(kinds) == {"remove", "replace"} and min(kinds.values()) > 15
    assert set(languages) == {"en", "cn"} and min(languages.values()) > 15


def test_a_kind_without_room_gives_none() -> None:
    lonely = Scene((SceneObject("ring", "red", "large", 32, 32, 12),), "mint")
    assert random_edit(lonely, "test", Random(0), ("remove",)) is None
    assert random_edit(lonely, "test", Random(0), ("recolor",)) is not None


def test_an_unknown_language_is_refused() -> None:
    edit = edits("test", 1)[0]
    with pytest.raises(ValueError, match="unknown language 'fr'"):
        edit.instruction("fr")
    assert Edit.from_dict(edit.to_dict()) == edit
    assert replace(edit, subject=None) != edit or edit.subject is None
