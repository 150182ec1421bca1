"""The weights of a checkpoint folder under official names, whatever they are called there.

Fine-tunes differ from the official folder in a few known ways, which the tables here list.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hyperbagel.bagel.embeddings import sincos_position_table
from hyperbagel.bagel.shipped import BRANCHES
from hyperbagel.bagel.tensors import CheckpointError, named_tensors, open_tensors, read_tensors

if TYPE_CHECKING:
    from hyperbagel.bagel.config import BagelConfig

log = logging.getLogger(__name__)

WEIGHTS = "ema.safetensors"
AUTOENCODER = "ae.safetensors"

FILES = (WEIGHTS, "model.safetensors")
"""Names of a folder's weights, each also for shards with an index (`NAME.index.json`). The first that is there counts:
trainings with the public code leave the moving average and the raw weights, and the average is what is served."""

RENAMED = (
    (r"(^|\.)(_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)(?=\.)", ""),
    (r"^\.", ""),
    (r"^(module|bagel)\.", ""),
)
"""Patterns in names, and what takes their place: what wrappers of trainings put there."""

UNUSED = (r"\.rotary_emb\.inv_freq$", r"^vit_model\.vision_model\.head\.", r"^vae_model\.")
"""Patterns of names that hold nothing which is used: frequencies that are computed, SigLIP's pooling head, and a copy
of the autoencoder, which has a file of its own."""

LATENT_TABLE, VIT_TABLE = "latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"
COMPUTED = (LATENT_TABLE, VIT_TABLE)
"""Fixed tables, which some leave out, as they depend on nothing but the sides of the grids."""

PATCHES = "vit_model.vision_model.embeddings.patch_embedding.weight"
"""Stored as a matrix, or as the kernel (out, channel, row, column) of the convolution that it was."""


@dataclass(frozen=True)
class StoredWeights:
    """Where the tensors of a folder's weights are.

    files: file -> name in it -> official name; computed: official name -> rows and columns of tables that are in none.
    """

    files: dict[Path, dict[str, str]]
    computed: dict[str, tuple[int, int]]

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Official names and tensors, of which only what is looked at is read."""
        for path, names in self.files.items():
            for stored, value in named_tensors([path]):
                if stored in names:
                    yield names[stored], _official(names[stored], value)
        for name, shape in self.computed.items():
            yield name, _table(shape)

    def shapes(self) -> dict[str, torch.Size]:
        """Official name -> shape."""
        return {name: value.shape for name, value in self.named()}

    def read(
        self, dtype: torch.dtype | None, device: torch.device | None, left_out: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Official name -> tensor, see `tensors.read_tensors`. left_out: those that come as shapes only."""
        tensors = {}
        for path, names in self.files.items():
            shapes_only = {stored for stored, name in names.items() if name in left_out}
            for stored, value in read_tensors(path, dtype, device, shapes_only).items():
                if stored in names:
                    tensors[names[stored]] = _official(names[stored], value)
        for name, shape in self.computed.items():
            tensors[name] = _table(shape).to(torch.device("meta") if name in left_out else device, dtype)
        return tensors


def stored_weights(folder: Path, config: BagelConfig) -> StoredWeights:
    """Where the weights of a folder are. Raises CheckpointError for missing or broken files."""
    files = {path: official_names_in(path) for path in weight_files(folder)}
    found = {name for names in files.values() for name in names.values()}
    sides = {LATENT_TABLE: config.max_latent_size, VIT_TABLE: config.vit.patches_per_side}
    width = config.llm.hidden_size
    return StoredWeights(files, {name: (sides[name] ** 2, width) for name in COMPUTED if name not in found})


def official_names_in(path: Path) -> dict[str, str]:
    """Names in a file -> official names, without those that are not used."""
    with open_tensors(path) as file:
        stored = list(file.keys())
    names = {}
    for key in stored:
        name = key
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        if not any(re.search(pattern, name) for pattern in UNUSED):
            names[key] = name
    return names


def latent_side(folder: Path) -> int | None:
    """Side of the grid that a folder's table of latent positions is for; None where there is no such table."""
    for path in weight_files(folder):
        if not path.is_file():
            continue  # whoever reads weights tells so
        stored = [key for key, name in official_names_in(path).items() if name == LATENT_TABLE]
        if stored:
            with open_tensors(path) as file:
                return math.isqrt(file.get_slice(stored[0]).get_shape()[0])
    return None


def weight_files(folder: Path) -> list[Path]:
    """The file or shards of a folder's weights. Raises CheckpointError for an index without entries."""
    for name in FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise CheckpointError(f"{index}: has no 'weight_map' from tensors to files; download or save it again")
            return [folder / shard for shard in sorted(set(weight_map.values()))]
        if (folder / name).is_file():
            return [folder / name]
    return [folder / WEIGHTS]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; is {path.parent} a BAGEL checkpoint folder?")
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content


def holds_model(folder: Path) -> bool:
    """Whether a folder is that of a model."""
    return (folder / "llm_config.json").is_file() or any(
        (folder / f"{name}{ending}").is_file() for name in FILES[:1] for ending in ("", ".index.json")
    )


def strays(folder: Path) -> list[str]:
    """Names of the safetensors files beside a folder's weights that are no part of them."""
    own = {*(path.name for path in weight_files(folder)), AUTOENCODER}
    return sorted(path.name for path in folder.glob("*.safetensors") if path.name not in own)


@cache
def warn_of_strays(folder: Path) -> None:
    """Once a folder, tell of files that some programs would take for weights."""
    if names := strays(folder):
        log.warning(
            "%s: %s beside the weights: programs that read every safetensors file of a folder take them for weights; "
            "move branches and draft heads to %s/",
            folder,
            ", ".join(names),
            folder / BRANCHES,
        )


def _official(name: str, value: Tensor) -> Tensor:
    return value.permute(0, 2, 3, 1).flatten(1) if name == PATCHES and value.ndim == 4 else value


def _table(shape: tuple[int, int]) -> Tensor:
    return sincos_position_table(math.isqrt(shape[0]), shape[1])
