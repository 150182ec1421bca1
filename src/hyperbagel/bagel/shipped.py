"""Models, branches and draft heads that come with the package, called by name instead of by path."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

WEIGHTS = Path(str(files("hyperbagel"))) / "weights"
"""Where they are: a folder for each model, with its branches and draft head inside."""


def resolve(place: str | Path, suffix: str = "") -> Path:
    """A path as it is where something stands there, else what is shipped under that name (such as `scenes`, or with
    suffix .safetensors `scenes/nfe6`), else the path, for the reader to complain about."""
    path = Path(place)
    shipped = WEIGHTS / f"{place}{suffix}"
    return shipped if not path.exists() and not path.is_absolute() and shipped.exists() else path


def shipped_models() -> list[str]:
    """Names of the models in the package."""
    return sorted(p.name for p in WEIGHTS.iterdir() if p.is_dir()) if WEIGHTS.is_dir() else []
