"""The exact judge: right edits get 10, what goes wrong costs as much as it should."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from hyperbagel.evaluation.gedit.judges.scene import SceneJudge
from hyperbagel.evaluation.gedit.runner import GEditSettings, evaluate
from hyperbagel.evaluation.gedit.samples import EditSample, JudgeScore
from hyperbagel.evaluation.gedit.scene_world import SCENE_CATEGORIES, difference, edit_sample, scene_edit_samples
from hyperbagel.scenes.drawing import draw
from hyperbagel.scenes.edits import Edit
from hyperbagel.scenes.world import Scene, SceneObject

SAMPLES = [sample for sample in scene_edit_samples(6, seed=1) if sample.language == "en"]
CIRCLE = SceneObject("circle", "red", "large", 16.0, 16.0, 11.0)
STAR = SceneObject("star", "blue", "large", 48.0, 16.0, 12.0)
RING = SceneObject("ring", "green", "small", 16.0, 50.0, 8.0)
SOURCE = Scene((CIRCLE, STAR, RING), "gray")


def scene(*objects: SceneObject, background: str = "gray") -> Scene:
    return Scene(objects, background)


def target_of(sample: EditSample) -> np.ndarray:
    return draw(Scene.from_dict(sample.meta["target"]))


def verdict(target: Scene, edited: Scene | np.ndarray, source: Scene = SOURCE) -> JudgeScore:
    sample = edit_sample(Edit("any", "edit it", "改", source, target), "k", "en")
    return SceneJudge().score_sample(sample, Image.fromarray(draw(edited) if isinstance(edited, Scene) else edited))


def reconstructed(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As a good autoencoder gives it back: a little soft, a little noisy."""
    soft = ndimage.gaussian_filter(picture.astype(float), (0.6, 0.6, 0)) + rng.normal(0, 4, picture.shape)
    return np.clip(soft + 0.5, 0, 255).astype(np.uint8)


def test_exact_targets_get_full_marks_in_both_languages() -> None:
    def edit(samples: list[EditSample], seeds: list[int]) -> list[Image.Image]:
        return [Image.fromarray(target_of(sample)) for sample in samples]

    settings = GEditSettings(SCENE_CATEGORIES, batch_size=8)
    result = evaluate(edit, scene_edit_samples(4), SceneJudge(), settings)
    for language in ("en", "cn"):
        assert result.scores[language]["full"].average.to_dict() == pytest.approx({"SC": 10, "PQ": 10, "O": 10})
    assert min(row.o for row in result.rows) > 9.9


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.key)
def test_what_each_picture_is_worth(sample: EditSample) -> None:
    rng, judge = np.random.default_rng(0), SceneJudge()

    def judged(picture: np.ndarray) -> JudgeScore:
        return judge.score_sample(sample, Image.fromarray(picture))

    good = judged(reconstructed(target_of(sample), rng))
    assert good.sc >= 9.5
    assert good.pq >= 9
    unedited = judged(np.asarray(sample.source))
    assert unedited.sc == 0
    assert unedited.consistency.scores[1] > 9.9
    assert unedited.pq > 9.9
    noise = judged(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert noise.sc < 0.5
    assert noise.pq < 0.5


def test_place_within_the_cell_is_the_editors_choice() -> None:
    heart = SceneObject("heart", "pink", "small", 50.0, 50.0, 8.0)
    elsewhere = replace(heart, x=46.0, y=54.0, radius=8.5)
    assert verdict(scene(CIRCLE, STAR, RING, heart), scene(CIRCLE, STAR, RING, elsewhere)).sc == pytest.approx(10)
    moved, differently = replace(RING, x=48.0), replace(RING, x=52.0, y=54.0)
    assert verdict(scene(CIRCLE, STAR, moved), scene(CIRCLE, STAR, differently)).sc == pytest.approx(10)


def test_added_object_is_worth_less_the_more_is_wrong_about_it() -> None:
    heart = SceneObject("heart", "pink", "small", 50.0, 50.0, 8.0)
    asked = scene(CIRCLE, STAR, RING, heart)

    def success(added: SceneObject) -> float:
        scores = verdict(asked, scene(CIRCLE, STAR, RING, added)).consistency.scores
        assert scores[1] == pytest.approx(10)  # a wrong addition is no overediting
        return scores[0]

    marks = [
        success(heart),
        success(replace(heart, size="large", radius=12.0)),
        success(replace(heart, color="black")),
        success(replace(heart, color="black", shape="cross")),
    ]
    assert marks == pytest.approx([10, 7, 4, 1.6])
    assert 0 < success(replace(heart, x=36.0)) < 10


def test_recolor_and_replace() -> None:
    asked = scene(replace(CIRCLE, color="yellow"), STAR, RING)
    assert verdict(asked, scene(replace(CIRCLE, color="purple"), STAR, RING)).consistency.scores[0] == 0
    reshaped = verdict(asked, scene(replace(CIRCLE, color="yellow", shape="square"), STAR, RING))
    assert reshaped.consistency.scores == pytest.approx((10, 5))
    asked = scene(replace(CIRCLE, color="yellow", shape="cross"), STAR, RING)
    assert verdict(asked, scene(replace(CIRCLE, shape="cross"), STAR, RING)).consistency.scores[0] == pytest.approx(4)
    assert verdict(asked, scene(STAR, RING)).consistency.scores[0] == 0


def test_remove() -> None:
    asked = scene(STAR, RING)
    assert verdict(asked, scene(replace(CIRCLE, color="white"), STAR, RING)).consistency.scores[0] == 0
    assert verdict(asked, scene(CIRCLE, RING)).sc == 0
    smear = draw(asked)
    smear[8:24, 8:16] = (150, 90, 90)
    assert verdict(asked, smear).consistency.scores[0] < 5


def test_wrong_one_of_two_twins() -> None:
    twin = replace(CIRCLE, x=48.0, y=50.0)
    source = scene(CIRCLE, STAR, twin)
    assert verdict(scene(STAR, twin), scene(CIRCLE, STAR), source).consistency.scores[0] == 0
    assert verdict(scene(STAR, twin), scene(STAR, twin), source).sc == pytest.approx(10)


def test_move_half_way_and_move_of_a_copy() -> None:
    moved = replace(RING, x=52.0)
    asked = scene(CIRCLE, STAR, moved)
    half_way = verdict(asked, scene(CIRCLE, STAR, replace(RING, x=32.0))).consistency.scores[0]
    copied = verdict(asked, scene(CIRCLE, STAR, RING, moved)).consistency.scores
    assert 3 < half_way < 7
    assert copied == pytest.approx((4, 10))


def test_background() -> None:
    asked = scene(CIRCLE, STAR, RING, background="mint")
    assert verdict(asked, asked).sc == pytest.approx(10)
    assert verdict(asked, scene(CIRCLE, STAR, RING, background="azure")).consistency.scores[0] == 0
    partly = draw(asked)
    partly[:16] = draw(SOURCE)[:16]
    assert 2 < verdict(asked, partly).consistency.scores[0] < 8


@pytest.mark.parametrize(
    ("edited", "overediting"),
    [
        (scene(CIRCLE, replace(STAR, x=49.0, y=17.0)), 10),
        (scene(CIRCLE, replace(STAR, y=21.0)), 7),
        (scene(CIRCLE, replace(STAR, y=30.0)), 5),
        (scene(CIRCLE, replace(STAR, color="black")), 5),
        (scene(CIRCLE, replace(STAR, shape="heart")), 5),
        (scene(CIRCLE), 5),
        (scene(CIRCLE, STAR, replace(CIRCLE, x=48.0, y=50.0)), 5),
        (scene(CIRCLE, STAR, background="mint"), 5),
        (scene(background="mint"), 1.25),
    ],
    ids=["a pixel", "5 px", "14 px", "colour", "shape", "lost", "new", "background", "all"],
)
def test_overediting_while_removing_the_ring(edited: Scene, overediting: float) -> None:
    success, restraint = verdict(scene(CIRCLE, STAR), edited).consistency.scores
    assert success == pytest.approx(10)
    assert restraint == pytest.approx(overediting, abs=1)


DAMAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "blurred": lambda p: ndimage.gaussian_filter(p, (3, 3, 0)),
    "faded": lambda p: (p * 0.5 + np.float32((196, 198, 200)) * 0.5).astype(np.uint8),
    "half an object": lambda p: np.concatenate([np.full_like(p[:16], (196, 198, 200)), p[16:]]),
    "scratched": lambda p: np.where((np.arange(64) % 8 < 2)[:, None, None], np.uint8(0), p),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_costs_quality(damage: str) -> None:
    assert verdict(scene(CIRCLE, STAR), DAMAGES[damage](draw(scene(CIRCLE, STAR)))).pq < 6


def test_another_size_is_resized() -> None:
    target = Image.fromarray(draw(scene(CIRCLE, STAR))).resize((256, 256), Image.Resampling.BICUBIC)
    sample = edit_sample(Edit("remove", "x", "x", SOURCE, scene(CIRCLE, STAR)), "k", "en")
    assert SceneJudge().score_sample(sample, target.convert("RGBA")).o > 9


def test_difference_of_several_edits() -> None:
    target = scene(replace(CIRCLE, color="black"), replace(RING, x=50.0), background="mint")
    found = difference(SOURCE, target)
    assert found.kept == ()
    assert found.changes_background
    assert {(c.before, c.after) for c in found.changes} == {
        (CIRCLE, replace(CIRCLE, color="black")), (RING, replace(RING, x=50.0)), (STAR, None)}  # fmt: skip


def test_samples_are_reproducible_and_bilingual() -> None:
    first, second = scene_edit_samples(2, seed=3), scene_edit_samples(2, seed=3)
    assert [s.meta for s in first] == [s.meta for s in second]
    assert {s.category for s in first} == set(SCENE_CATEGORIES)
    assert len({(s.key, s.language) for s in first}) == len(first) == 4 * len(SCENE_CATEGORIES)
    english, chinese = first[:2]
    assert english.key == chinese.key
    assert english.instruction.isascii()
    assert not chinese.instruction.isascii()
    assert scene_edit_samples(2, seed=4)[0].meta != first[0].meta


def test_sample_without_scenes_is_named() -> None:
    sample = EditSample("k7", "recolor", "en", "x", Image.new("RGB", (64, 64)), meta={"source": {}})
    with pytest.raises(ValueError, match="sample 'k7': meta has no exact scenes"):
        SceneJudge().score_sample(sample, sample.source)
