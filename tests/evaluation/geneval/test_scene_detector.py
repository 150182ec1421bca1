"""The scene detector against real drawings, clean and degraded, and against what is no drawing."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage

from hyperbagel.evaluation.geneval.protocol import names_colors
from hyperbagel.evaluation.geneval.scene_detector import SceneDetector
from hyperbagel.evaluation.geneval.scene_parser import ParsedScene, parse_scene
from hyperbagel.scenes.drawing import draw
from hyperbagel.scenes.layout import Spec, random_scene
from hyperbagel.scenes.palette import BACKGROUNDS, COLORS, SHAPES
from hyperbagel.scenes.world import Scene, SceneObject, size_of

Picture = npt.NDArray[np.uint8]


def random_scenes(number: int, seed: int) -> list[Scene]:
    rng = Random(seed)
    return [random_scene([Spec()] * rng.randint(0, 4), "test", rng) for _ in range(number)]


def touching_scene(rng: Random, same_color: bool) -> Scene:
    """Two objects whose boxes touch."""
    while True:
        radii = [rng.choice((7.0, 8.0, 9.0, 11.0, 12.0, 14.0)) for _ in range(2)]
        first, other = rng.sample(list(COLORS), 2)
        x, y = rng.randint(16, 48), rng.randint(16, 48)
        along, across = int(sum(radii)), rng.randint(-7, 7)
        places = [(x, y), (x + along, y + across) if rng.random() < 0.5 else (x + across, y + along)]
        try:
            objects = [
                SceneObject(rng.choice(SHAPES), color, size_of(radius), float(x), float(y), radius)
                for (x, y), radius, color in zip(places, radii, (first, first if same_color else other), strict=True)
            ]
            return Scene(tuple(objects), rng.choice(list(BACKGROUNDS)))
        except ValueError:  # beyond the picture
            continue


def is_exact(scene: Scene, parsed: ParsedScene) -> bool:
    """Same objects, each with its shape, its colour and its box within 1 px, and the same background."""
    rest = list(parsed.clean(0.9))
    for one in scene.objects:
        near = [
            found
            for found in rest
            if (found.shape, found.color) == (one.shape, one.color)
            and max(abs(found.x - one.x), abs(found.y - one.y)) + abs(found.radius - one.radius) <= 1
        ]
        if len(near) != 1:
            return False
        rest.remove(near[0])
    return not rest and len(parsed.objects) == len(scene.objects) and parsed.background == scene.background


def exact_share(scenes: list[Scene], degrade: Callable[[Picture], Picture]) -> float:
    return float(np.mean([is_exact(scene, parse_scene(degrade(draw(scene)))) for scene in scenes]))


def noisy(picture: Picture, sigma: float = 0.05) -> Picture:
    noise = np.random.default_rng(int(picture.sum())).normal(0, 255 * sigma, picture.shape)
    return np.clip(picture + noise + 0.5, 0, 255).astype(np.uint8)


def blurred(picture: Picture, sigma: float = 0.8) -> Picture:
    return (ndimage.gaussian_filter(picture.astype(np.float32), (sigma, sigma, 0)) + 0.5).astype(np.uint8)


def shifted(picture: Picture) -> Picture:
    return ndimage.shift(picture.astype(np.float32), (0.4, 0.3, 0), order=1, mode="nearest").astype(np.uint8)


DEGRADED: dict[str, Callable[[Picture], Picture]] = {
    "clean": lambda picture: picture,
    "noisy": noisy,
    "blurred": blurred,
    "shifted": shifted,
    "blurred and noisy": lambda picture: noisy(blurred(picture)),
}


@pytest.mark.parametrize("number", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", DEGRADED)
def test_drawings_are_read_exactly(name: str, number: int) -> None:
    assert exact_share(random_scenes(number, seed=number), DEGRADED[name]) >= 0.99


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_in_every_colour_on_every_background(shape: str) -> None:
    scenes = [
        Scene((SceneObject(shape, color, size_of(radius), 30.0, 33.0, radius),), background)
        for color in COLORS
        for background in BACKGROUNDS
        for radius in ((7.0, 13.5) if background == "gray" else (8.5,))
    ]
    assert exact_share(scenes, lambda picture: picture) == 1


@pytest.mark.parametrize("same_color", [False, True])
def test_touching_objects_are_told_apart(same_color: bool) -> None:
    rng = Random(2)
    scenes = [touching_scene(rng, same_color) for _ in range(50)]
    assert exact_share(scenes, lambda picture: picture) >= 0.98
    assert exact_share(scenes, noisy) >= 0.96


@pytest.mark.parametrize("smoothness", [0, 1, 3])
def test_noise_holds_no_objects(smoothness: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        noise = ndimage.gaussian_filter(rng.normal(size=(64, 64, 3)), (smoothness, smoothness, 0))
        picture = np.clip(noise / noise.std() * 60 + 128, 0, 255).astype(np.uint8)
        assert not parse_scene(picture).clean(0.9)


def canvas(inside: Callable[[npt.NDArray[np.float64], npt.NDArray[np.float64]], npt.NDArray[np.bool_]]) -> Picture:
    """A red figure of radius 13 on beige; inside(x, y) in units of the radius."""
    ticks = ((np.arange(64 * 8) + 0.5) / 8 - 32) / 13
    share = inside(ticks[None, :], ticks[:, None]).reshape(64, 8, 64, 8).mean((1, 3))[..., None]
    background, color = np.array(BACKGROUNDS["beige"]), np.array(COLORS["red"])
    return (background + share * (color - background) + 0.5).astype(np.uint8)


MALFORMED = {
    "ellipse": lambda x, y: x**2 + (1.4 * y) ** 2 <= 1,
    "half circle": lambda x, y: (x**2 + y**2 <= 1) & (y < 0),
    "circle with a bite": lambda x, y: (x**2 + y**2 <= 1) & ((x > 0) | (y > 0)),
    "circle with a small hole": lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 > 0.25**2),
    "open ring": lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.52**2) & ~((x > 0) & (abs(y) < 0.3)),
    "thin ring": lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.75**2),
    "rectangle": lambda x, y: (abs(x) <= 0.9) & (abs(y) <= 0.6),
    "turned square": lambda x, y: np.maximum(abs(0.92 * x + 0.39 * y), abs(0.92 * y - 0.39 * x)) <= 0.8,
    "triangle upside down": lambda x, y: (-y <= 0.95) & (2 * abs(x) <= 1.05 - y),
    "cross without an arm": lambda x, y: (
        (np.maximum(abs(x), abs(y)) <= 1) & (np.minimum(abs(x), abs(y)) <= 0.34) & (x < 0.4)
    ),
    "L": lambda x, y: (np.maximum(abs(x), abs(y)) <= 0.9) & ((x < -0.2) | (y > 0.2)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_shapes_score_low(name: str) -> None:
    parsed = parse_scene(canvas(MALFORMED[name]))
    assert all(found.score < 0.3 for found in parsed.objects)


def test_score_falls_with_degradation() -> None:
    picture = draw(Scene((SceneObject("star", "blue", "small", 30.0, 30.0, 8.0),), "mint"))
    scores = [[found.score for found in parse_scene(blurred(picture, sigma)).objects] for sigma in (0.01, 1.2, 4)]
    assert scores[0][0] > 0.98
    assert scores[0][0] > max(scores[1], default=0) > max(scores[2], default=0)


def test_two_coloured_and_off_palette_objects_score_low() -> None:
    picture = draw(Scene((SceneObject("circle", "blue", "large", 32.0, 32.0, 13.0),), "mint"))
    half = picture.copy()
    half[:, 32:][half[:, 32:, 2] > half[:, 32:, 1] + 60] = COLORS["red"]
    assert not parse_scene(half).clean(0.3)
    gray = np.where((picture == picture[0, 0]).all(-1, keepdims=True), picture, 110).astype(np.uint8)
    assert not parse_scene(gray).clean(0.3)


def test_background_is_named_or_unknown() -> None:
    assert parse_scene(np.full((64, 64, 3), BACKGROUNDS["azure"], np.uint8)).background == "azure"
    dark = parse_scene(np.full((64, 64, 3), 20, np.uint8))
    assert (dark.background, dark.objects) == (None, ())
    assert dark.background_rgb == pytest.approx((20, 20, 20))


@pytest.mark.filterwarnings("error")
def test_a_background_in_a_palette_colour_is_no_trouble() -> None:
    picture = draw(Scene((SceneObject("circle", "blue", "large", 32.0, 32.0, 13.0),), "gray"))
    white = np.where((picture == picture[0, 0]).all(-1, keepdims=True), 255, picture).astype(np.uint8)
    parsed = parse_scene(white)
    assert parsed.background is None
    assert [(found.shape, found.color) for found in parsed.clean(0.9)] == [("circle", "blue")]


def test_other_picture_sizes_work() -> None:
    scene = Scene((SceneObject("ring", "pink", "small", 80.0, 20.0, 9.0),), "gray", width=96, height=40)
    assert is_exact(scene, parse_scene(draw(scene)))


@pytest.mark.parametrize("image", [torch.zeros(3, 8, 8), np.zeros((8, 8), np.uint8), torch.zeros(8, 8, 3).byte()])
def test_other_images_are_refused(image: torch.Tensor | Picture) -> None:
    with pytest.raises(ValueError, match="uint8"):
        parse_scene(image)  # type: ignore[arg-type]


def test_detector_reports_classes_boxes_and_colours() -> None:
    objects = (
        SceneObject("ring", "black", "small", 20.0, 20.0, 8.0),
        SceneObject("ring", "white", "small", 45.0, 20.0, 9.0),
        SceneObject("heart", "red", "large", 30.0, 48.0, 12.0),
    )
    detector = SceneDetector()
    assert names_colors(detector)
    image = torch.from_numpy(draw(Scene(objects, "lavender"))).permute(2, 0, 1)
    empty = torch.full((3, 64, 64), 200, dtype=torch.uint8)
    found, nothing = detector.detect([image, empty])
    assert not nothing.by_class
    assert set(found.by_class) == {"ring", "heart"}
    assert found["heart"].boxes == pytest.approx(np.array([[18, 36, 42, 60]]), abs=1)
    colors = detector.classify(image, "ring", found["ring"])
    assert dict(zip(colors, found["ring"].boxes[:, 0], strict=True)) == pytest.approx({"black": 12, "white": 36}, abs=1)
    assert found["ring"].scores.min() > 0.9
