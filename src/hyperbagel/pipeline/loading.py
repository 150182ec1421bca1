"""Models, branches and devices by their names: those of files, and those that come with the package."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hyperbagel.bagel.shipped import BRANCHES, resolve, shipped_models

if TYPE_CHECKING:
    import torch

    from hyperbagel.bagel.absent import Part
    from hyperbagel.bagel.model import Bagel
    from hyperbagel.bagel.tokenizer import Tokenizer

DType = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Device:
    """Where and how to compute.

    Args:
        device: cpu, cuda, cuda:1 or another torch device; auto takes a GPU when there is one. `--device cuda` is short
            for `--device.device cuda`.
        dtype: type of weights and activations; auto is bfloat16 on GPUs and float32 on CPUs.
    """

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def resolve(self) -> tuple[torch.device, torch.dtype]:
        """The device, which is there, and the type. Raises ValueError for a device that is not."""
        import torch

        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            place = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"device {name}: no such device; use cpu, cuda or cuda:1, or leave it out") from error
        if place.type != "cpu":
            _require(place)
        dtype = self.dtype
        if dtype == "auto":
            dtype = "float32" if place.type == "cpu" else "bfloat16"
        return place, getattr(torch, dtype)


def _require(place: torch.device) -> None:
    """Raises ValueError for an accelerator that this machine, or its torch, lacks."""
    import torch

    backend = getattr(torch, place.type, None)
    available = getattr(backend, "is_available", None)
    count = backend.device_count() if backend is not None and available is not None and available() else 0
    if not count:
        what = "GPU" if place.type == "cuda" else place.type
        raise ValueError(f"device {place}: no {what} here; use --device cpu or leave it out")
    if (place.index or 0) >= count:
        raise ValueError(f"device {place}: the last one here is {place.type}:{count - 1}; use that or leave it out")


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


def load_model(model: str, device: Device, without: Collection[Part] = (), prompt: str = "") -> tuple[Bagel, Tokenizer]:
    """A model with its tokenizer, ready to use. without: parts that are not needed; prompt: what it is to read.

    Raises errors that name the file and the remedy, and ValueError for a prompt that is too long.
    """
    from hyperbagel.bagel.model import Bagel
    from hyperbagel.bagel.tokenizer import Tokenizer
    from hyperbagel.decoding.weight_layout import arrange_for_decoding

    place, dtype = device.resolve()
    folder = model_folder(model)
    tokenizer = Tokenizer.from_pretrained(folder)
    tokenizer.prompt(prompt)
    bagel = Bagel.from_pretrained(folder, dtype, place, without)
    bagel.requires_grad_(False)
    if bagel.device.type == "cpu":
        arrange_for_decoding(bagel)
    return bagel, tokenizer


def check_files(*branches: str | Path | None, draft: str | Path | None = None) -> None:
    """Raises CheckpointError for a file that is no branch, or no draft head: what can be told before a model is loaded.

    None stands for no file.
    """
    from hyperbagel.bagel.branch_checkpoint import branch_file, read_info
    from hyperbagel.draft.checkpoint import read_settings

    for branch in branches:
        if branch is not None:
            read_info(branch_file(branch))
    if draft is not None:
        read_settings(resolve(draft, ".safetensors"))
