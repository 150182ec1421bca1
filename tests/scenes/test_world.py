"""Scenes, their relations, their drawings and what is held out."""

from __future__ import annotations

import json
from itertools import combinations, permutations

import numpy as np
import pytest

from hyperbagel.scenes import BACKGROUNDS, COLORS, KINDS, RELATIONS, SHAPES, coverage, draw, relations, sample
from hyperbagel.scenes.heldout import HELD_OUT_PAIRS, HELD_OUT_RELATIONS, allows, lacks_pair, lacks_relation
from hyperbagel.scenes.palette import OPPOSITE
from hyperbagel.scenes.world import Scene, SceneObject, is_clear, relation, size_of


def thing(x: float = 32, y: float = 32, radius: float = 8, shape: str = "circle", color: str = "red") -> SceneObject:
    return SceneObject(shape, color, size_of(radius), x, y, radius)


def scenes(split: str, count: int) -> list[Scene]:
    """Every scene of the first documents of all kinds."""
    return [
        Scene.from_dict(data)
        for kind in KINDS
        for i in range(count)
        for data in sample(split, 5, i, kind).document["meta"]["scenes"]
    ]


def test_a_scene_survives_json() -> None:
    for scene in scenes("test", 10):
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


@pytest.mark.parametrize(
    "change",
    [
        {"background": "red"}, {"objects": [{"shape": "circle"}]}, {"depth": 3},
        {"objects": [{"shape": "blob", "color": "red", "size": "small", "x": 32, "y": 32, "radius": 8}]},
        {"objects": [{"shape": "ring", "color": "red", "size": "large", "x": 32, "y": 32, "radius": 8}]},
        {"objects": [{"shape": "ring", "color": "red", "size": "small", "x": 60, "y": 32, "radius": 8}]},
    ],
)  # fmt: skip
def test_impossible_scenes_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"unknown|not a scene|is small, not|beyond"):
        Scene.from_dict({"objects": [], "background": "mint"} | change)


def test_objects_are_kept_in_reading_order() -> None:
    corners = [(50, 50), (12, 50), (50, 12), (12, 12)]
    scene = Scene(tuple(thing(x, y) for x, y in corners), "mint")
    assert [(o.x, o.y) for o in scene.objects] == corners[::-1]
    assert [scene.place(o) for o in scene.objects] == ["top left", "top right", "bottom left", "bottom right"]


def test_relations_follow_genevals_rule() -> None:
    a, b = thing(10, 30), thing(50, 32)
    assert relations(a, b) == {"left of"} and relations(b, a) == {"right of"}
    assert relations(thing(30, 10), thing(30, 50)) == {"above"} and relations(thing(30, 50), thing(30, 10)) == {"below"}
    assert relations(thing(12, 12), thing(50, 50)) == {"left of", "above"}
    assert relations(a, a) == frozenset()
    # offset (16, 30), boxes 16 wide: (16 - 3.2) / 34 = 0.376 misses the threshold, (30 - 3.2) / 34 = 0.788 does not
    assert relations(thing(20, 10), thing(36, 40)) == {"above"}


def test_the_stated_relation_is_one_of_genevals_and_has_its_opposite() -> None:
    pairs = [pair for scene in scenes("test", 60) for pair in permutations(scene.objects, 2)]
    assert len(pairs) > 500
    for a, b in pairs:
        stated = relation(a, b)
        assert stated in relations(a, b, threshold=0.58)
        assert relation(b, a) == OPPOSITE[stated]
    assert relation(thing(12, 12), thing(50, 50)) is None, "a diagonal has no main axis"


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_all_drawn_scenes_are_clear(split: str) -> None:
    for scene in scenes(split, 60):
        assert 1 <= len(scene.objects) <= 4 and is_clear(scene.objects)
        for a, b in combinations(scene.objects, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + 2
        for o in scene.objects:
            low, high = (7, 9) if o.size == "small" else (11, 14)
            assert low <= o.radius <= high


@pytest.mark.parametrize(
    "objects",
    [
        [thing(12, 12), thing(28, 12)],  # boxes touch
        [thing(8, 12)],  # less than a pixel to the edge
        [thing(22, 32)],  # on a line between two places
        [thing(12, 12), thing(52, 50)],  # no main axis
        [thing(2.9 + 8, 11, 2), thing(17, 11, 2)],  # one place, two objects
    ],
)
def test_unclear_scenes_are_seen(objects: list[SceneObject]) -> None:
    assert not is_clear(objects)


@pytest.mark.parametrize(("split", "later"), [("train", "val"), ("train", "test"), ("val", "test")])
def test_a_split_never_shows_what_is_held_out_of_it(split: str, later: str) -> None:
    pairs, facts = HELD_OUT_PAIRS[later], HELD_OUT_RELATIONS[later]
    for scene in scenes(split, 80):
        assert allows(split, scene.objects)
        assert not {(o.color, o.shape) for o in scene.objects} & pairs
        assert not {(a.shape, n, b.shape) for a, b in permutations(scene.objects, 2) for n in relations(a, b)} & facts
    shown = scenes(later, 80)
    assert {(o.color, o.shape) for scene in shown for o in scene.objects} >= pairs
    assert sum(not allows(split, scene.objects) for scene in shown) > 50


def test_held_out_combinations_are_few_spread_and_of_one_split() -> None:
    pairs, facts = HELD_OUT_PAIRS["test"], HELD_OUT_RELATIONS["test"]
    assert {shape for _, shape in pairs} == set(SHAPES) and len({c for c, _ in pairs}) == 8
    assert len(facts) == len({frozenset((a, b)) for a, _, b in facts}) == 12
    assert {s for a, _, b in facts for s in (a, b)} == set(SHAPES)
    a, name, b = next(iter(facts))
    assert lacks_relation("train", b, OPPOSITE[name], a) and lacks_relation("val", a, name, b)
    assert not lacks_relation("train", a, OPPOSITE[name], b) and not lacks_relation("test", a, name, b)
    held = sum(lacks_relation("val", a, r, b) for a, b in permutations(SHAPES, 2) for r in RELATIONS)
    assert held == 24
    assert len(HELD_OUT_PAIRS["val"]) == 4 and not HELD_OUT_PAIRS["val"] & pairs
    assert 4 <= len(HELD_OUT_RELATIONS["val"]) <= 6 and not HELD_OUT_RELATIONS["val"] & facts
    assert all(lacks_pair("train", *pair) and not lacks_pair("val", *pair) for pair in HELD_OUT_PAIRS["val"])


def test_all_colors_and_backgrounds_are_well_apart() -> None:
    values = list((COLORS | BACKGROUNDS).values())
    tints = set(BACKGROUNDS.values())
    for a, b in combinations(values, 2):
        if not {a, b} <= tints:
            assert np.linalg.norm(np.subtract(a, b)) >= 80, (a, b)
    for tint in tints:
        assert 190 <= np.dot(tint, (0.299, 0.587, 0.114)) <= 225


def test_shapes_fill_their_box_and_nothing_beyond() -> None:
    for shape in SHAPES:
        for radius in (7.0, 8.5, 14.0):
            mask = coverage(shape, radius)
            rows, columns = np.nonzero(mask.max(1) > 0.05)[0], np.nonzero(mask.max(0) > 0.05)[0]
            n = mask.shape[0] // 2
            for low, high in ((rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)):
                assert n - radius - 1 <= low <= n - radius + 1
                assert n + radius - 1 <= high <= n + radius + 1


@pytest.mark.parametrize("radius", [7.0, 8.0, 11.5])
def test_shapes_are_told_apart(radius: float) -> None:
    masks = {shape: coverage(shape, radius) for shape in SHAPES}
    for a, b in combinations(SHAPES, 2):
        overlap = np.minimum(masks[a], masks[b]).sum() / np.maximum(masks[a], masks[b]).sum()
        assert overlap < 0.79, (a, b, overlap)


def test_drawing_shows_colors_background_and_soft_edges() -> None:
    image = draw(Scene((thing(20, 40, 9, "square", "white"), thing(50, 12, 8, "circle", "black")), "mint"))
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert tuple(image[40, 20]) == COLORS["white"] and tuple(image[12, 50]) == COLORS["black"]
    assert tuple(image[60, 60]) == BACKGROUNDS["mint"]
    plain = (image == BACKGROUNDS["mint"]).all(-1) | (image == 255).all(-1) | (image == COLORS["black"]).all(-1)
    assert 0 < (~plain).sum() < 200
    assert not plain[4:20, 42:58].all(), "the circle's edge is anti-aliased"


def test_subpixel_positions_move_the_center_of_mass() -> None:
    mask = coverage("circle", 7.0, 0.5, 0.25)
    ticks = np.arange(mask.shape[0]) + 0.5 - mask.shape[0] / 2
    assert (mask.sum(0) * ticks).sum() / mask.sum() == pytest.approx(0.5, abs=0.02)
    assert (mask.sum(1) * ticks).sum() / mask.sum() == pytest.approx(0.25, abs=0.02)


def test_pictures_of_other_sizes_and_at_the_edge() -> None:
    wide = Scene((SceneObject("heart", "blue", "large", 84, 12, 12),), "beige", width=96, height=48)
    assert draw(wide).shape == (48, 96, 3)
    assert wide.place(wide.objects[0]) == "top right"
