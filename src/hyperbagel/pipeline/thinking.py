"""Think mode, as BAGEL was trained for it: a system text asks for a thought between tags, then comes the rest."""

from __future__ import annotations

from typing import Final

from hyperbagel.bagel.segments import Segment, TextSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.decoding.autoregressive import DecodingSettings

BEFORE_ANSWER: Final = (
    "You should first think about the reasoning process in the mind and then provide the user with the answer. \n"
    "The reasoning process is enclosed within <think> </think> tags, i.e. <think> reasoning process here </think> "
    "answer here"
)
"""System text of answers; its words and blanks are those that the model knows."""
BEFORE_PICTURE: Final = (
    "You should first think about the planning process in the mind and then generate the image. \n"
    "The planning process is enclosed within <think> </think> tags, i.e. <think> planning process here </think> "
    "image here"
)
"""System text of pictures and edits, likewise."""
LONGEST: Final = DecodingSettings(1000)
"""How thoughts are written unless told otherwise."""

_OPEN, _CLOSE = "<think>", "</think>"


def system_text(tokenizer: Tokenizer, text: str) -> list[Segment]:
    """A system text as a document begins with it; nothing for an empty one."""
    return [TextSegment(tokenizer.prompt(text))] if text else []


def split_thought(text: str) -> tuple[str, str]:
    """The thought in a text and what follows on it; a text without a whole thought is no thought."""
    before, opened, inside = text.partition(_OPEN)
    thought, closed, rest = inside.partition(_CLOSE)
    if not opened or not closed or before.strip():
        return "", text
    return thought.strip(), rest.strip()
