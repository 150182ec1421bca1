"""Models and branches by their names: those of files, and those that come with the package."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hyperbagel.bagel.shipped import BRANCHES, resolve, shipped_models
from hyperbagel.pipeline.device import Device, Runtime

if TYPE_CHECKING:
    import torch

    from hyperbagel.bagel.absent import Part
    from hyperbagel.bagel.model import Bagel
    from hyperbagel.bagel.tokenizer import Tokenizer


def model_folder(model: str) -> Path:
    """Folder of a model: a path, or the name of a model that comes with the package. Raises FileNotFoundError."""
    if (path := resolve(model)).is_dir():
        return path
    names = shipped_models()
    known = f"; models in the package: {', '.join(names)}" if names else ""
    raise FileNotFoundError(
        f"{model}: no such folder; give a BAGEL checkpoint folder (`hyperbagel init` makes one){known}"
    )


def refuse_model_folder(folder: Path) -> None:
    """Raises FileExistsError for the folder of a model, beside whose weights nothing else may lie."""
    from hyperbagel.bagel.stored import holds_model

    if holds_model(folder):
        raise FileExistsError(
            f"{folder}: holds a model, and programs take every safetensors file there for its weights; "
            f"write to {folder / BRANCHES} instead"
        )


def load_model(
    model: str, device: Device, without: Collection[Part] = (), texts: Sequence[str] = ()
) -> tuple[Bagel, Tokenizer]:
    """A model with its tokenizer, ready to use, or in the host's memory for `economy.settle`. without: parts that are
    not needed; texts: what it is to read.

    Raises errors that name the file and the remedy, and ValueError for a text that is empty or too long.
    """
    from hyperbagel.bagel.model import Bagel
    from hyperbagel.bagel.tokenizer import Tokenizer

    place, dtype = device.resolve()
    on_host = isinstance(device, Runtime) and device.read_on_host
    folder = model_folder(model)
    tokenizer = Tokenizer.from_pretrained(folder)
    for text in texts:
        tokenizer.prompt(said(text))
    bagel = Bagel.from_pretrained(folder, dtype, "cpu" if on_host else place, without)
    arrange(bagel, place)
    return bagel, tokenizer


def arrange(model: Bagel, place: torch.device) -> None:
    """Freeze a model, and store its weights in the order in which the device where it will be used reads them fastest;
    values, names and shapes stay."""
    import torch

    from hyperbagel.decoding.weight_layout import arrange_for_decoding

    model.requires_grad_(False)
    if place.type == "cpu":
        arrange_for_decoding(model)
    elif place.type == "cuda":
        model.autoencoder.to(memory_format=torch.channels_last)


def said(text: str) -> str:
    """A text that somebody gave. Raises ValueError for one without a word."""
    if not text.strip():
        raise ValueError("the text is empty: say what the picture should show, what should change, or what to answer")
    return text


def check_files(*branches: str | Path | None, draft: str | Path | None = None) -> None:
    """Raises CheckpointError for a file that is no branch, or nothing to draft with: what can be told before a model is
    loaded.

    None stands for no file.
    """
    from hyperbagel.bagel.branch_checkpoint import branch_file, read_info

    for branch in branches:
        if branch is not None:
            read_info(branch_file(branch))
    if draft is not None:
        from hyperbagel.decoding.loading import check_proposing

        check_proposing(draft)
