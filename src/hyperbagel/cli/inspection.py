"""`hyperbagel inspect`: what a file or folder is."""

from __future__ import annotations

from hyperbagel.pipeline.loading import model_folder


def inspect(path: str, model: str | None = None) -> None:
    """Tell what a model's folder, a branch, adapters, a draft head or phrases are, and whether it fits a model.

    Args:
        path: file or folder, or the name of one that comes with the package.
        model: checkpoint folder that it is to fit, or the name of a model that comes with the package.
    """
    from hyperbagel.pipeline.inspection import inspect as inspected

    facts = inspected(path, None if model is None else model_folder(model))
    width = max(map(len, facts))
    for name, text in facts.items():
        print(f"{name:<{width}}  {text}")
