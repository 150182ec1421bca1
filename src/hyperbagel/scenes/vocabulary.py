"""The world's tokenizer: a small byte-level BPE with BAGEL's special tokens, in Hugging Face's file format.

It is built by `scripts/scenes_tokenizer.py`, anew when the words of the world change.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from hyperbagel.scenes.palette import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES

SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
"""Padding, beginning and end of a text block, beginning and end of an image block; ids 0 to 4."""


def tokenizer_folder() -> Path:
    """Folder of the built tokenizer that ships with the package."""
    return Path(str(files("hyperbagel.scenes") / "tokenizer"))


def knowledge() -> str:
    """What the words of the world are about, as the tokenizer's configuration tells it to people."""
    kinds = {"shapes": SHAPES, "colors": tuple(COLORS), "backgrounds": tuple(BACKGROUNDS), "sizes": SIZES}
    listed = [f"{kind} ({', '.join(words)})" for kind, words in kinds.items()]
    return (
        ", ".join([*listed, "numbers (one to four)", f"relations ({', '.join(RELATIONS)})"]) + "; names in lower case"
    )


def load_tokenizer() -> Tokenizer:
    """The built tokenizer that ships with the package."""
    return Tokenizer.from_file(str(tokenizer_folder() / "tokenizer.json"))
