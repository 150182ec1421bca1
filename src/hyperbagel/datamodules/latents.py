"""Latents of pictures, stored beside them in shards: training then does not run the autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load
from safetensors.torch import save
from torch import Tensor

from hyperbagel.bagel.checkpoint import read_config
from hyperbagel.bagel.fingerprint import digest, joined
from hyperbagel.bagel.shipped import resolve
from hyperbagel.bagel.stored import AUTOENCODER
from hyperbagel.bagel.tensors import named_tensors
from hyperbagel.datamodules.shards import Member

ENDING = ".latent"
"""What follows the name of a picture in that of its latent."""


def autoencoder_of(folder: str | Path) -> str:
    """Fingerprint of a model folder's autoencoder, by which its latents are known. Raises CheckpointError."""
    folder = resolve(folder)
    config = read_config(folder).autoencoder
    scale = f"{config.scale_factor!r} {config.shift_factor!r}"
    return joined({"weights": digest(named_tensors([folder / AUTOENCODER])), "scale": scale})


def latent_member(latent: Tensor, autoencoder: str, size: tuple[int, int]) -> bytes:
    """What is stored of a latent (z, h, w), in float16. autoencoder: its fingerprint; size: the picture's height and
    width, as it was encoded."""
    return save({_name(autoencoder, size): latent.cpu().half().contiguous()})


def stored_latent(
    members: Mapping[str, Member], file: str, autoencoder: str, size: tuple[int, int]
) -> NDArray[np.float16] | None:
    """The latent of a sample's picture `file`; None if there is none of this autoencoder and size."""
    data = members.get(f"{file}{ENDING}")
    if not isinstance(data, bytes):
        return None
    found: NDArray[np.float16] | None = load(data).get(_name(autoencoder, size))
    return found


def _name(autoencoder: str, size: tuple[int, int]) -> str:
    return f"{autoencoder} {size[0]}x{size[1]}"
