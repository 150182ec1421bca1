"""Models with random weights by the name of a preset, kept in the user's cache."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import torch

from hyperbagel.bagel.build import assemble, initial
from hyperbagel.bagel.shipped import cache_folder
from hyperbagel.files import first_folder
from hyperbagel.scenes.vocabulary import tokenizer_folder


def preset_folder(preset: str) -> Path:
    """The folder that `hyperbagel init --preset PRESET` would write, written when it is first asked for.

    Another version of what makes the weights gets another folder. Several processes may ask at once.
    """
    sizes = assemble.PRESETS[preset]
    sources = [Path(assemble.__file__), Path(initial.__file__), *sorted(tokenizer_folder().iterdir())]
    version = sha256(repr(sizes).encode() + b"".join(path.read_bytes() for path in sources if path.is_file()))
    folder = cache_folder() / "fresh" / f"{preset}-{version.hexdigest()[:16]}"
    if not folder.is_dir():
        with first_folder(folder) as partial, torch.device("cpu"):  # `plan` builds on the meta device
            assemble.assemble(assemble.Parts(sizes=sizes), partial)
    return folder
