"""`hyperbagel export ...`: trained parts in the formats of other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from hyperbagel.files import check_folder
from hyperbagel.pipeline.loading import Device, DType, check_files, load_model


def draft(
    draft: Path, out: Path, model: str = "scenes", format: Literal["eagle3"] = "eagle3", dtype: DType = "float32"
) -> None:
    """Write a draft head as config.json and model.safetensors.

    Args:
        draft: file of a draft head.
        out: folder to write.
        model: checkpoint folder of its target, or the name of a model that comes with the package.
        format: eagle3 is the layout that vLLM and SGLang read; they load heads of kind eagle3 as they are, while those
            of kind hyper have further keys, which an engine has to learn first.
        dtype: type of the written weights.
    """
    from hyperbagel.draft.checkpoint import load_draft
    from hyperbagel.draft.export import export_eagle3

    check_folder(out)
    check_files(draft=draft)
    bagel, _ = load_model(model, Device("cpu", dtype), without=("generation", "autoencoder"))
    head = load_draft(draft, bagel)
    export_eagle3(head, bagel, out)
    print(f"{out}: {sum(p.numel() for p in head.parameters()) / 1e6:.1f} M parameters, {format}, {dtype}")


EXPORT_COMMANDS: dict[str, Callable[..., Any]] = {"draft": draft}
"""A trained part for other programs."""
