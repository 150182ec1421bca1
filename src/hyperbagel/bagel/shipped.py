"""Models, branches and draft heads that are called by name instead of by path: those that come with the package, and
models of a preset's sizes with random weights."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path

WEIGHTS = Path(str(files("hyperbagel"))) / "weights"
"""Where they are: a folder for each model."""

BRANCHES = "branches"
"""Folder inside of a model's, for branches and draft heads. Not beside the weights, where serving programs that read
every safetensors file would take a branch for a part of the model."""


def resolve(place: str | Path, suffix: str = "") -> Path:
    """The path that a name stands for.

    That is `place` itself where something stands there; else what is shipped under that name (such as `scenes`, or with
    suffix .safetensors `scenes/nfe6`); for `fresh/PRESET` (such as `fresh/nano`) the folder of a model with random
    weights, made when it is first asked for; else `place`, for the reader to complain about.
    """
    path = Path(place)
    if path.exists() or path.is_absolute():
        return path
    shipped = WEIGHTS / path if not suffix else WEIGHTS / path.parent / BRANCHES / f"{path.name}{suffix}"
    if shipped.exists():
        return shipped
    if fresh := re.fullmatch(r"fresh/(nano|small|scenes)", str(place)):
        from hyperbagel.bagel.presets import preset_folder  # reads this module, and most names need no torch

        return preset_folder(fresh[1])
    return path


def is_shipped(path: Path) -> bool:
    """Whether a file is one of the package's."""
    return path.resolve().is_relative_to(WEIGHTS.resolve())


def model_of(path: Path) -> Path:
    """The folder of the model that a file in its `branches` belongs to."""
    return path.parent.parent


def shipped_files() -> dict[str, Path]:
    """Branches and draft heads in the package, by the name that `resolve` takes (such as `scenes/nfe6`)."""
    files = sorted(WEIGHTS.glob(f"*/{BRANCHES}/*.safetensors"))
    return {f"{model_of(path).name}/{path.stem}": path for path in files}


def shipped_models() -> list[str]:
    """Names of the models in the package."""
    return sorted(p.name for p in WEIGHTS.iterdir() if p.is_dir()) if WEIGHTS.is_dir() else []


def cache_folder() -> Path:
    """Where files are kept that can be made again: `hyperbagel` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hyperbagel"
