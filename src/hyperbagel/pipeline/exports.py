"""Distilled branches for other programs: merged into their model's folder, or as adapters.

At fixed guidance scales the embeddings of the scales are constants, which the last bias of the timestep embedder takes
in. So merged weights are a plain BAGEL, in the official layout, that computes what the branch does at these scales,
except that it reads source pictures itself too (`Sampler.context`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from hyperbagel.bagel.adapters import load_adapters, merged, save_adapters, split
from hyperbagel.bagel.branch import DURATION, IMAGE_SCALE, TEXT_SCALE, GenerationBranch
from hyperbagel.bagel.branch_checkpoint import (
    BranchInfo,
    Fingerprints,
    branch_file,
    branch_in,
    has_adapters,
    own_branch,
    read_info,
    require_belonging,
)
from hyperbagel.bagel.branch_info import MERGED
from hyperbagel.bagel.checkpoint import generation_keys, official_key, read_config
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.stored import AUTOENCODER, WEIGHTS, stored_weights
from hyperbagel.bagel.tensors import named_tensors, read_tensors, write_tensors
from hyperbagel.files import whole_folder
from hyperbagel.flow.schedule import timesteps

SCHEDULE = "hyperbagel_schedule"
"""Key of safetensors metadata with the times of sampling, from 1 to 0: one more than there are steps."""

_BIAS = "time_embedder.mlp.2.bias"


def folded(branch: GenerationBranch, scales: Mapping[str, float]) -> GenerationBranch:
    """A branch without conditions that computes what `branch` does at these scales; a scale of 0 leaves one out.

    Raises ValueError for a condition without a scale, and for a scale that the branch does not take.
    """
    if DURATION in branch.conditions:
        raise ValueError("a branch that takes the duration of its steps has no constant for it, so it cannot be merged")
    for name in branch.conditions:
        if name not in scales:
            raise ValueError(f"the branch takes a {name.replace('_', ' ')}: give one, or 0 to leave it out")
    if surplus := [name.replace("_", " ") for name, scale in scales.items() if scale and name not in branch.conditions]:
        raise ValueError(f"the branch takes no {' and no '.join(surplus)}: leave it out")
    plain = branch.copy()
    bias = plain.get_parameter(_BIAS)
    with torch.no_grad():
        for name in branch.conditions:
            if scales[name]:
                bias.add_(branch.embedder(name)(torch.tensor(scales[name], device=bias.device)))
            delattr(plain, f"{name}_embedder")
    return plain


def merged_as(folder: Path, branch: str | Path, scales: Mapping[str, float]) -> BranchInfo:
    """What the merged folder will say of itself; no weights are read.

    Raises CheckpointError for a branch that is none or of another model than that of the folder.
    """
    path = branch_file(branch)
    info = read_info(path)
    require_belonging(path, info, Fingerprints.of_folder(folder))
    text, image = (scales.get(name) for name in (TEXT_SCALE, IMAGE_SCALE))
    return replace(
        info,
        text_scale=None if text is None else (text, text),
        image_scale=None if image is None else (image, image),
        reader="student",
        model=folder.name,
    )


def merge(
    folder: Path, branch: str | Path, scales: Mapping[str, float], out: Path, dtype: torch.dtype | None = None
) -> BranchInfo:
    """Write a model's folder with a branch in the place of its generation weights, in the official layout.

    scales: condition -> value, as in `folded`. All else is as it was, settings and tokenizer to the byte. Weights keep
    the types they are stored in, with the bias that takes the scales in as float32, unless a dtype is asked for.
    Raises as `merged_as` and `folded`, FileExistsError where there are files.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: already exists and is not an empty folder; give another one")
    info = merged_as(folder, branch, scales)
    config = read_config(folder)
    stored, path = stored_weights(folder, config), branch_file(branch)
    replaced = set(generation_keys(stored.shapes()))
    named = stored.named() if has_adapters(path) else named_tensors([path])
    types = {key: value.dtype for key, value in named}
    plain = folded(_whole(path, folder, config), scales).state_dict()
    ours = {official_key(f"generation.{name}"): value for name, value in plain.items()}
    types[_BIAS] = torch.float32
    tensors = stored.read(dtype, None, left_out=replaced)
    tensors |= {key: value.to(dtype or types[key]) for key, value in ours.items()}
    with whole_folder(out) as partial:
        write_tensors(tensors, partial / WEIGHTS, {"format": "pt", **info.metadata(MERGED), **_schedule(info)})
        write_tensors(read_tensors(folder / AUTOENCODER, dtype), partial / AUTOENCODER, {"format": "pt"})
        for file in folder.iterdir():
            if _is_kept(file):
                shutil.copyfile(file, partial / file.name)
    return info


def export_adapters(
    folder: Path, branch: str | Path, rank: int, out: Path, dtype: torch.dtype = torch.float32
) -> dict[int, float]:
    """Write the difference of a branch and its model's own as adapters of a rank; see `adapters.split`, whose errors of
    each rank are returned.

    Raises CheckpointError for a branch that is none or of another model than that of the folder.
    """
    path = branch_file(branch)
    info = read_info(path)
    require_belonging(path, info, Fingerprints.of_folder(folder))
    config = read_config(folder)
    low, full, errors = split(_whole(path, folder, config), own_branch(folder, config, torch.float32), rank)
    small = {name: (down.to(dtype), up.to(dtype)) for name, (down, up) in low.items()}
    others = {name: value.to(dtype) for name, value in full.items()}
    save_adapters(small, others, replace(info, model=folder.name), out)
    return errors


def _whole(path: Path, folder: Path, config: BagelConfig) -> GenerationBranch:
    """The branch in a file in float32, with adapters multiplied into the weights of the folder."""
    if has_adapters(path):
        return merged(load_adapters(path, own_branch(folder, config, torch.float32)))
    return branch_in(path, config, torch.float32)


def _schedule(info: BranchInfo) -> dict[str, str]:
    return {SCHEDULE: json.dumps(timesteps(info.nfe, info.shift).tolist())} if info.nfe else {}


def _is_kept(file: Path) -> bool:
    """Whether a file of the model's folder belongs into the merged one: settings, tokenizer, licence."""
    other = file.name.endswith((".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".ckpt"))
    return file.is_file() and not other and file.name != "README.md" and not file.name.startswith(".")
