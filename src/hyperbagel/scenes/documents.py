"""Samples: reproducible interleaved documents of every kind with their pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hyperbagel.scenes.captions import caption
from hyperbagel.scenes.claims import Claim, Noun, whole_claim
from hyperbagel.scenes.drawing import draw
from hyperbagel.scenes.edits import LANGUAGES, Edit, random_edits, referring_edit
from hyperbagel.scenes.heldout import check_split
from hyperbagel.scenes.prompts import random_prompt
from hyperbagel.scenes.questions import Question, random_question, understanding_scene, yes_no_question
from hyperbagel.scenes.world import Scene

CAPTION_PROMPT: Final = "Describe the picture in detail."
MAX_TURNS: Final = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """A document in the project's schema with its pictures.

    key: unique name; document: {"segments": [...], "meta": {...}}, plain JSON values, where meta["scenes"][i] is the
    exact content of picture i; images: file name -> (height, width, 3) uint8 RGB.
    """

    key: str
    document: dict[str, Any]
    images: dict[str, NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class _Content:
    """Segments in which an image is still a scene, with whether it is a target, and the meta data."""

    segments: list[tuple[str | Scene, bool]]
    meta: dict[str, Any]


def sample(split: str, seed: int, index: int, kind: str) -> Sample:
    """The sample number `index` of a kind; a pure function of its arguments.

    split: "train", "val" or "test" (see `heldout`); kind: one of `KINDS`. Raises ValueError for other values.
    """
    if kind not in _KINDS:
        raise ValueError(f"unknown kind of document {kind!r}: use one of {', '.join(_KINDS)}")
    check_split(split)
    key = f"{split}-{seed}-{kind}-{index:08d}"
    content = _KINDS[kind](split, Random(int.from_bytes(blake2b(key.encode(), digest_size=8).digest())))
    segments: list[dict[str, Any]] = []
    images: dict[str, NDArray[np.uint8]] = {}
    scenes = []
    for item, loss in content.segments:
        if isinstance(item, Scene):
            name = f"{len(images)}.png"
            images[name] = draw(item)
            scenes.append(item.to_dict())
            segments.append({"type": "image", "file": name, "loss": loss})
        else:
            segments.append({"type": "text", "text": item, "loss": loss})
    meta = {"kind": kind, "split": split, "language": "en", **content.meta, "scenes": scenes}
    return Sample(key, {"segments": segments, "meta": meta}, images)


def edit_document(edits: list[Edit], language: str) -> list[tuple[str | Scene, bool]]:
    """The segments of a chain of edits: the first picture, then instruction and edited picture for each turn."""
    segments: list[tuple[str | Scene, bool]] = [(edits[0].source, False)]
    for edit in edits:
        segments += [(edit.instruction(language), False), (edit.target, True)]
    return segments


def _generation(split: str, rng: Random, task: str | None = None) -> _Content:
    claim, scene = random_prompt(split, rng, task)
    metadata = claim.metadata()
    return _Content([(metadata["prompt"], False), (scene, True)], {"geneval": metadata})


def _counting(split: str, rng: Random) -> _Content:
    return _generation(split, rng, "counting")


def _detailed(split: str, rng: Random) -> _Content:
    _, scene = random_prompt(split, rng)
    return _Content([(_all_of(scene, rng), False), (scene, True)], {})


def _all_of(scene: Scene, rng: Random) -> str:
    """A prompt that says everything about a scene, its objects in any order."""
    nouns = [Noun(item.shape, item.color, item.size, scene.place(item)) for item in scene.objects]
    return Claim(tuple(rng.sample(nouns, len(nouns))), background=scene.background).metadata()["prompt"]


def _edited(edits: list[Edit], language: str) -> _Content:
    meta = {  # with what is to be seen in the end, which an instruction does not say
        "language": language,
        "edits": [edit.to_dict() for edit in edits],
        "caption": caption(edits[-1].target),
        "reward_prompt": whole_claim(edits[-1].target).text(),
    }
    return _Content(edit_document(edits, language), meta)


def _editing(split: str, rng: Random) -> _Content:
    return _edited(random_edits(1, split, rng), rng.choice(LANGUAGES))


def _chinese_editing(split: str, rng: Random) -> _Content:
    return _edited(random_edits(1, split, rng), "cn")


def _referring(split: str, rng: Random) -> _Content:
    return _edited([referring_edit(split, rng)], rng.choice(LANGUAGES))


def _multi_turn(split: str, rng: Random) -> _Content:
    return _edited(random_edits(rng.randint(2, MAX_TURNS), split, rng), rng.choice(LANGUAGES))


def _caption(split: str, rng: Random) -> _Content:
    scene = understanding_scene(split, rng)
    return _Content([(scene, False), (CAPTION_PROMPT, False), (caption(scene), True)], {})


def _answers(subject: Scene | str, questions: list[Question]) -> _Content:
    segments: list[tuple[str | Scene, bool]] = [(subject, False)]
    for question in questions:
        segments += [(question.text, False), (question.answer, True)]
    return _Content(segments, {"topics": [question.topic for question in questions]})


def _question(split: str, rng: Random) -> _Content:
    scene = understanding_scene(split, rng)
    return _answers(scene, [random_question(scene, split, rng)])


def _yes_no(split: str, rng: Random) -> _Content:
    scene = understanding_scene(split, rng)
    return _answers(scene, [yes_no_question(scene, split, rng)])


def _dialogue(split: str, rng: Random) -> _Content:
    scene = understanding_scene(split, rng)
    asked: dict[str, Question] = {}  # by text, so that no question is asked twice
    for ask in rng.choices((random_question, yes_no_question), (1, 2), k=rng.randint(4, 12)):  # yes/no is harder
        question = ask(scene, split, rng)
        asked.setdefault(question.text, question)
    return _answers(scene, list(asked.values()))


def _reading(split: str, rng: Random) -> _Content:
    """What a dialogue asks of a picture, asked of a prompt."""
    scene = understanding_scene(split, rng)
    asked = {q.text: q for q in (random_question(scene, split, rng) for _ in range(rng.randint(3, 8)))}
    return _answers(_all_of(scene, rng), list(asked.values()))


def _translation(split: str, rng: Random) -> _Content:
    (edit,) = random_edits(1, split, rng)
    return _Content([(edit.instruction("cn"), False), (edit.instruction("en"), True)], {})


_KINDS: Final[dict[str, Callable[[str, Random], _Content]]] = {
    "generation": _generation, "counting": _counting, "detailed": _detailed, "editing": _editing,
    "chinese_editing": _chinese_editing, "referring": _referring, "multi_turn": _multi_turn, "caption": _caption,
    "question": _question, "yes_no": _yes_no, "dialogue": _dialogue, "reading": _reading, "translation": _translation,
}  # fmt: skip
KINDS: Final = tuple(_KINDS)
"""Kinds of documents: text to image; a number of one shape; text to image of which the text says everything; one edit,
told in English or Chinese; one told in Chinese; one that removes or replaces one of several objects; 2 to 5 edits in a
row; long caption; one question; one yes/no question; up to 12 different questions of both sorts on one picture.

Without pictures, as language models learn to read: questions on a text that says everything; an instruction in Chinese,
answered by the same in English."""
