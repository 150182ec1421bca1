"""What can be clicked on the interactive page: prompts, and drawn scenes with edits of them and questions on them."""

from __future__ import annotations

from typing import Final

from PIL import Image

from hyperbagel.scenes.drawing import draw
from hyperbagel.scenes.world import Scene, SceneObject

PROMPTS: Final = (
    "a photo of a red circle",
    "a photo of three green stars",
    "a photo of a purple heart above a yellow ring",
    "a photo of a blue square left of an orange cross",
)

_SCENES: Final = (
    Scene(
        (
            SceneObject("circle", "red", "large", 16.0, 32.0, 12.0),
            SceneObject("star", "blue", "large", 48.0, 32.0, 13.0),
        ),
        "beige",
    ),
    Scene(
        (
            SceneObject("heart", "purple", "large", 32.0, 15.0, 12.0),
            SceneObject("ring", "yellow", "large", 32.0, 48.0, 12.0),
        ),
        "azure",
    ),
)
_EDITS: Final = (  # such as all networks of `scenes` get right
    (0, "Make the star yellow."),
    (0, "Move the star to the top right."),
    (1, "Remove the heart."),
    (1, "Add a small red star in the top left."),
    (1, "把背景改成薄荷色。"),  # change the background to mint
)
_QUESTIONS: Final = (
    (0, "Describe the picture in detail."),
    (0, "Where is the star?"),
    (1, "What color is the heart?"),
    (1, "Does this picture show a cross?"),
)


def edits() -> list[tuple[Image.Image, str]]:
    """Pictures with instructions."""
    return [(Image.fromarray(draw(_SCENES[number])), text) for number, text in _EDITS]


def questions() -> list[tuple[Image.Image, str]]:
    """Pictures with questions on them."""
    return [(Image.fromarray(draw(_SCENES[number])), text) for number, text in _QUESTIONS]
