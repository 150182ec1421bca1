"""Models, branches and draft heads that are called by name instead of by path: those that come with the package, and
models of a preset's sizes with random weights."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path

WEIGHTS = Path(str(files("hyperbagel"))) / "weights"
"""Where they are: a folder for each model, with its branches and draft head inside."""


def resolve(place: str | Path, suffix: str = "") -> Path:
    """The path that a name stands for.

    That is `place` itself where something stands there; else what is shipped under that name (such as `scenes`, or with
    suffix .safetensors `scenes/nfe6`); for `fresh/PRESET` (such as `fresh/nano`) the folder of a model with random
    weights, made when it is first asked for; else `place`, for the reader to complain about.
    """
    path = Path(place)
    if path.exists() or path.is_absolute():
        return path
    if (shipped := WEIGHTS / f"{place}{suffix}").exists():
        return shipped
    if fresh := re.fullmatch(r"fresh/(nano|small|scenes)", str(place)):
        from hyperbagel.bagel.presets import preset_folder  # reads this module, and most names need no torch

        return preset_folder(fresh[1])
    return path


def is_shipped(path: Path) -> bool:
    """Whether a file is one of the package's."""
    return path.resolve().is_relative_to(WEIGHTS.resolve())


def shipped_files() -> dict[str, Path]:
    """Weight files inside of the models in the package, by the name that `resolve` takes (such as `scenes/nfe6`)."""
    files = sorted(WEIGHTS.glob("*/*.safetensors"))
    return {f"{path.parent.name}/{path.stem}": path for path in files}


def shipped_models() -> list[str]:
    """Names of the models in the package."""
    return sorted(p.name for p in WEIGHTS.iterdir() if p.is_dir()) if WEIGHTS.is_dir() else []


def cache_folder() -> Path:
    """Where files are kept that can be made again: `hyperbagel` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hyperbagel"
