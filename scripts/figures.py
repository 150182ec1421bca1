"""Draws the strip of pictures in README with the package's own model: python scripts/figures.py [FOLDER]

Pictures in a column have the same prompt and noise, edits the same source. None is chosen: seeds count from 0. What
each row took is printed, and how fast the model tells what it sees, with its draft head and without.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import hyperbagel
from hyperbagel import Pipeline
from hyperbagel.files import write_picture

PROMPTS = [
    "a photo of a red circle",
    "a photo of three green stars",
    "a photo of a purple heart above a yellow ring",
    "a photo of a blue square left of an orange cross",
]
EDITS = [
    "Make the circle blue.",
    "Change the background to mint.",
    "Remove the ring.",
    "Replace the cross with a red heart.",
]
NETWORKS = ((None, 50), ("scenes/nfe6", 6), ("scenes/nfe6", 4), ("scenes/nfe1", 1))
"""Branches with their steps."""
SIZE, GAP, LABEL, LINE = 128, 6, 150, 16


def rows() -> list[tuple[str, list[Image.Image]]]:
    """Labels and pictures: each network's pictures, and its edits of the teacher's pictures. Prints their seconds."""
    drawn: list[tuple[str, list[Image.Image]]] = []
    edited: list[tuple[str, list[Image.Image]]] = []
    sources: list[Image.Image] = []
    for branch, steps in NETWORKS:
        pipeline: Pipeline = hyperbagel.load("scenes", branch=branch)
        pictures = pipeline.generate(PROMPTS, steps=steps, seed=range(len(PROMPTS)))
        images = [picture.image for picture in pictures]
        sources = sources or images
        edits = pipeline.edit(sources, EDITS, steps=steps, seed=range(len(EDITS)))
        drawn.append((evaluations(pictures[0].nfe), images))
        edited.append((evaluations(edits[0].nfe), [picture.image for picture in edits]))
        costs = (f"{each[0].seconds:.3f} s in {evaluations(each[0].nfe)}" for each in (pictures, edits))
        print("a picture {}, an edit {}".format(*costs), flush=True)
    return [("prompt", []), *drawn, ("edit of the first row", []), *edited]


def captions(picture: Image.Image) -> None:
    """Prints what the model sees, and how fast it says so with its draft head and without."""
    for draft in (None, "scenes/draft"):
        pipeline = hyperbagel.load("scenes", draft=draft)
        pipeline.ask("Describe the picture in detail.", picture)  # warms up
        answer = pipeline.ask("Describe the picture in detail.", picture)
        head = "with" if draft else "without"
        print(f"{answer.tokens_per_second:.0f} tokens/s {head} a draft head: {answer.text}", flush=True)


def evaluations(number: int) -> str:
    return f"{number} evaluation{'s' * (number > 1)}"


def strip(parts: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """One picture: labels at the left, and above each block what was asked for."""
    width = LABEL + len(PROMPTS) * (SIZE + GAP)
    heights = [SIZE + GAP if images else 3 * LINE for _, images in parts]
    sheet = Image.new("RGB", (width, sum(heights)), "white")
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(size=12), 0
    asked = iter((PROMPTS, EDITS))
    for (label, images), height in zip(parts, heights, strict=True):
        pen.text((4, top + (height - LINE) // 2), label, fill="black", font=font)
        texts = [""] * len(images) if images else [_wrapped(text) for text in next(asked)]
        for column, text in enumerate(texts):
            left = LABEL + column * (SIZE + GAP)
            if images:
                sheet.paste(images[column].resize((SIZE, SIZE), Image.Resampling.NEAREST), (left, top))
            else:
                pen.multiline_text((left, top + 2), text, fill="black", font=font, spacing=2)
        top += height
    return sheet


def _wrapped(text: str, most: int = 19) -> str:
    """In lines of so many characters."""
    lines = [""]
    for word in text.removeprefix("a photo of ").split():
        if len(lines[-1]) + len(word) > most:
            lines.append("")
        lines[-1] += f"{word} "
    return "\n".join(line.strip() for line in lines)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "images"
    found = rows()
    write_picture(folder / "strip.png", strip(found).quantize(128))
    captions(found[1][1][-1])
    print(folder / "strip.png")
