"""The words of the scenes world and what they look like: colours, backgrounds, shapes, sizes and places."""

from __future__ import annotations

from typing import Final

RGB = tuple[int, int, int]

COLORS: Final[dict[str, RGB]] = {
    "red": (220, 30, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 228, 30),
    "green": (30, 150, 50),
    "blue": (35, 70, 220),
    "purple": (130, 40, 160),
    "pink": (255, 115, 175),
    "brown": (120, 70, 30),
    "black": (15, 15, 15),
    "white": (255, 255, 255),
}
"""GenEval's ten colours, in GenEval's order."""

BACKGROUNDS: Final[dict[str, RGB]] = {
    "azure": (182, 205, 230),
    "beige": (222, 206, 172),
    "mint": (180, 220, 194),
    "lavender": (200, 190, 226),
    "gray": (196, 198, 200),
}
"""Light tints: dark enough for white objects, light enough for black ones."""

SHAPES: Final[tuple[str, ...]] = ("circle", "square", "triangle", "diamond", "star", "ring", "cross", "heart")

SIZE_THRESHOLD: Final = 10.0
"""Radius in pixels between "small" and "large"; no object comes within 1 px of it."""
SIZES: Final[tuple[str, ...]] = ("small", "large")

PLACES: Final[tuple[str, ...]] = (
    "top left", "top center", "top right",
    "center left", "center", "center right",
    "bottom left", "bottom center", "bottom right",
)  # fmt: skip
"""The cells of a 3x3 grid in reading order: place i is row i // 3, column i % 3."""

RELATIONS: Final[tuple[str, ...]] = ("left of", "right of", "above", "below")
OPPOSITE: Final[dict[str, str]] = {
    "left of": "right of", "right of": "left of", "above": "below", "below": "above",
}  # fmt: skip

NUMBERS: Final[tuple[str, ...]] = ("zero", "one", "two", "three", "four")

CHINESE: Final[dict[str, str]] = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色",
    "purple": "紫色", "pink": "粉色", "brown": "棕色", "black": "黑色", "white": "白色",
    "azure": "天蓝色", "beige": "米色", "mint": "薄荷色", "lavender": "薰衣草色", "gray": "灰色",
    "circle": "圆形", "square": "正方形", "triangle": "三角形", "diamond": "菱形",
    "star": "星形", "ring": "圆环", "cross": "十字", "heart": "心形",
    "small": "小", "large": "大",
    "top left": "左上方", "top center": "正上方", "top right": "右上方",
    "center left": "左侧", "center": "中央", "center right": "右侧",
    "bottom left": "左下方", "bottom center": "正下方", "bottom right": "右下方",
}  # fmt: skip
"""Chinese for every word that an edit instruction can hold."""


def with_article(phrase: str) -> str:
    """`phrase` after "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(shape: str) -> str:
    """The plural of a shape or of "object"."""
    return shape + ("es" if shape.endswith("s") else "s")
