"""Models, branches and devices as named on the command line."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hyperbagel.bagel.shipped import resolve, shipped_models

if TYPE_CHECKING:
    from hyperbagel.bagel.branch import GenerationBranch
    from hyperbagel.bagel.model import Bagel
    from hyperbagel.bagel.tokenizer import Tokenizer

log = logging.getLogger(__name__)

DType = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Device:
    """Where and how to compute.

    Args:
        device: a torch device, such as cpu, cuda or cuda:1; auto takes a GPU when there is one.
        dtype: type of weights and activations.
    """

    device: str = "auto"
    dtype: DType = "float32"


def model_folder(model: str) -> Path:
    """Folder of a model: a path, or the name of a model that comes with the package. Raises FileNotFoundError."""
    if (path := resolve(model)).is_dir():
        return path
    names = shipped_models()
    known = f"; models in the package: {', '.join(names)}" if names else ""
    raise FileNotFoundError(
        f"{model}: no such folder; give a BAGEL checkpoint folder (`hyperbagel init` makes one){known}"
    )


def load_model(model: str, device: Device) -> tuple[Bagel, Tokenizer]:
    """A model with its tokenizer, ready to use. Raises errors that name the file and the remedy."""
    import torch

    from hyperbagel.bagel.memory import arrange_for_decoding
    from hyperbagel.bagel.model import Bagel
    from hyperbagel.bagel.tokenizer import Tokenizer

    folder = model_folder(model)
    tokenizer = Tokenizer.from_pretrained(folder)
    place = device.device
    if place == "auto":
        place = "cuda" if torch.cuda.is_available() else "cpu"
    bagel = Bagel.from_pretrained(folder, getattr(torch, device.dtype)).to(place)
    bagel.requires_grad_(False)
    if bagel.device.type == "cpu":
        arrange_for_decoding(bagel)
    return bagel, tokenizer


def load_branch_for(
    model: Bagel, branch: str | None, text_scale: float | None = None
) -> tuple[GenerationBranch | None, float]:
    """The generation branch of a file with its timestep shift; without a file None, the model's own, with its shift.

    Warns when the branch was not trained for the given text scale, which it takes as an input.
    """
    if branch is None:
        return None, model.config.timestep_shift
    from hyperbagel.bagel.branch_checkpoint import load_branch

    loaded, info = load_branch(branch, model)
    low, high = info.text_scale or (-math.inf, math.inf)
    if text_scale is not None and not low <= text_scale <= high:
        log.warning("%s: made for text scales %g to %g, which %g is not; try one", branch, low, high, text_scale)
    return loaded, info.shift
