"""Models with random weights by the name of a preset, kept in the user's cache."""

from __future__ import annotations

import shutil
import tempfile
from hashlib import sha256
from pathlib import Path

import torch

from hyperbagel.bagel.build import assemble, initial
from hyperbagel.bagel.shipped import cache_folder
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
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{preset}-"))
        try:
            with torch.device("cpu"):  # `plan` builds on the meta device
                assemble.assemble(assemble.Parts(sizes=sizes), partial)
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # no other process was first
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder
