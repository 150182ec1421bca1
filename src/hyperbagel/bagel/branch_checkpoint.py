"""Generation branches as files, each bound to the understanding stack that it was trained over."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from hyperbagel.bagel.absent import Absent
from hyperbagel.bagel.adapters import file_in, load_adapters, merged
from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE, GenerationBranch, conditions_in
from hyperbagel.bagel.branch_info import ADAPTERS, BRANCH, info_in
from hyperbagel.bagel.branch_info import BranchInfo as BranchInfo
from hyperbagel.bagel.checkpoint import (
    CheckpointError,
    check_keys,
    generation_keys,
    official_key,
    official_names,
    part_digests,
    read_config,
    shapes_only,
)
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.fingerprint import digest, joined
from hyperbagel.bagel.finite import require_finite
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.shipped import is_shipped, model_of, resolve, shipped_files
from hyperbagel.bagel.stored import stored_weights
from hyperbagel.bagel.tensors import NotFilled, metadata_of, open_tensors, read_tensors, write_tensors

log = logging.getLogger(__name__)


def base_hash(model: Bagel) -> str:
    """Fingerprint of the understanding stack a branch belongs to: names, shapes and a few values of every tensor."""
    return digest(model.understanding.state_dict().items())


def context_hash(model: Bagel) -> str:
    """Fingerprint of all that reads contexts, of which the branch goes on: the understanding stack, the original
    generation branch and the autoencoder. Parts that the model was loaded without count as they are in its files.
    """
    digests = {}
    for name in ("understanding", "generation"):
        part = getattr(model, name)
        named = ((official_key(f"{name}.{key}"), value) for key, value in part.state_dict().items())
        digests[name] = part.digest if isinstance(part, Absent) else digest(named)
    coder = model.autoencoder
    digests["autoencoder"] = coder.digest if isinstance(coder, Absent) else digest(coder.official_state_dict().items())
    return joined(digests)


@dataclass(frozen=True)
class Fingerprints:
    """By which a model is known: `base_hash`, `context_hash`, and its folder for messages."""

    base: str
    context: str
    place: str

    @classmethod
    def of(cls, model: Bagel) -> Fingerprints:
        """Those of a loaded model."""
        return cls(base_hash(model), context_hash(model), model.source or "this model")

    @classmethod
    def of_folder(cls, folder: Path) -> Fingerprints:
        """The same from a folder's files, of which little is read. Raises CheckpointError for unusable ones."""
        config = read_config(folder)
        with torch.device("meta"):
            names = official_names(Bagel(config))
        own = {official: name for name, official in names.items() if name.startswith("understanding.")}
        tensors = stored_weights(folder, config).named()
        base = digest((own[name].removeprefix("understanding."), value) for name, value in tensors if name in own)
        return cls(base, joined(part_digests(folder)), str(folder))


def save_branch(branch: nn.Module, info: BranchInfo, path: str | Path) -> None:
    """Write a generation branch: official names (plus those of the embedders of conditions), `info` as metadata."""
    tensors = {official_key(f"generation.{name}"): value for name, value in branch.state_dict().items()}
    write_tensors(tensors, Path(path), info.metadata())


def read_info(path: Path) -> BranchInfo:
    """What a branch file says about itself; one of the package without a `context` belongs to the model beside it.

    Raises CheckpointError for a file that is missing, broken or no branch.
    """
    if not path.is_file():
        known = ", ".join(shipped_branches()) or "none"
        raise CheckpointError(f"{path}: no such file; give a branch file; branches in the package: {known}")
    metadata = metadata_of(path)
    info = info_in(metadata, path) or info_in(metadata, path, ADAPTERS)
    if info is None:
        raise CheckpointError(f"{path}: not a generation branch (no 'hyperbagel_branch' metadata); pass a branch file")
    if info.context is None and is_shipped(path):
        folder = model_of(path)
        return replace(info, context=joined(part_digests(folder)), model=folder.name)
    return info


def branch_file(place: str | Path) -> Path:
    """The file of a branch that a name, a path, or a folder of adapters stands for."""
    return file_in(resolve(place, ".safetensors"))


def shipped_branches() -> list[str]:
    """Names of the branches in the package."""
    return [name for name, path in shipped_files().items() if BRANCH in metadata_of(path)]


def check_branch(path: str | Path, model: Bagel) -> BranchInfo:
    """What the branch in a file, or of a name, says about itself, if `model` can load it; tensors are not read.

    Raises CheckpointError when the file is missing, broken, not a branch, or belongs to another base model.
    """
    path = branch_file(path)
    info = read_info(path)
    require_belonging(path, info, Fingerprints.of(model))
    if not has_adapters(path):
        _check_shapes(path, model.config)
    return info


def _check_shapes(path: Path, config: BagelConfig) -> None:
    with open_tensors(path) as file:
        shapes = {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}
    expected = _without_weights(config, shapes).state_dict()
    check_keys(str(path), {official_key(f"generation.{k}"): v.shape for k, v in expected.items()}, shapes)


def _without_weights(config: BagelConfig, keys: Iterable[str]) -> GenerationBranch:
    """A branch such as the one in a file with these keys, on the meta device."""
    with torch.device("meta"), NotFilled():
        branch = GenerationBranch(config)
        branch.add_condition(*conditions_in(keys))
    return branch


def load_branch(path: str | Path, model: Bagel, *, whole: bool = False) -> tuple[GenerationBranch, BranchInfo]:
    """A branch for `model` from a file or a name (such as `scenes/nfe6`), in the model's dtype and on its device.

    One of adapters shares the weights of the model's own branch, unless the branch is to be whole.

    With the meta device as default no file is read. Raises CheckpointError as `check_branch`.
    """
    if shapes_only():
        shapes = GenerationBranch(model.config).to(model.dtype)
        shapes.add_condition(TEXT_SCALE, IMAGE_SCALE)
        return shapes, BranchInfo("", 0, base_hash(model), context=context_hash(model))
    info = check_branch(path, model)
    file = branch_file(path)
    if has_adapters(file):
        branch = load_adapters(file, model.generation)
        return merged(branch) if whole else branch, info
    return branch_in(file, model.config, model.dtype, model.device), info


def has_adapters(file: Path) -> bool:
    """Whether a branch file holds adapters."""
    return ADAPTERS in metadata_of(file)


def branch_of_folder(folder: Path, model: Bagel) -> GenerationBranch:
    """The generation branch of another model's folder, in the dtype of `model` and on its device.

    Raises CheckpointError unless it is over the same understanding stack.
    """
    config, theirs, own = read_config(folder), Fingerprints.of_folder(folder), base_hash(model)
    if theirs.base != own or config.max_latent_size != model.config.max_latent_size:
        raise CheckpointError(
            f"{folder}: has another understanding stack (fingerprint {theirs.base}, {model.source or 'this model'} has "
            f"{own}); start from a folder that was exported over the same model"
        )
    return own_branch(folder, config, model.dtype, model.device)


def own_branch(
    folder: Path, config: BagelConfig, dtype: torch.dtype, device: torch.device | None = None
) -> GenerationBranch:
    """The generation branch of a model's folder, of which the rest is not kept."""
    stored = stored_weights(folder, config)
    shapes = stored.shapes()
    generation = set(generation_keys(shapes))
    tensors = stored.read(dtype, device, left_out=shapes.keys() - generation)
    return _of_tensors(config, tensors)


def branch_in(
    path: Path, config: BagelConfig, dtype: torch.dtype, device: torch.device | None = None
) -> GenerationBranch:
    """The branch in a file, whatever model it is of. Raises CheckpointError for one of other sizes."""
    _check_shapes(path, config)
    tensors = read_tensors(path, dtype, device)
    return _of_tensors(config, tensors)


def _of_tensors(config: BagelConfig, tensors: Mapping[str, Tensor]) -> GenerationBranch:
    """The branch that tensors with official names, among others perhaps, are of."""
    branch = _without_weights(config, tensors)
    branch.load_state_dict({k: tensors[official_key(f"generation.{k}")] for k in branch.state_dict()}, assign=True)
    return branch


def require_belonging(path: Path, info: BranchInfo, model: Fingerprints) -> None:
    """Raises CheckpointError for a branch of another model; warns where its file is too old to tell."""
    theirs = f"{info.model}, fingerprint" if info.model else "fingerprint"
    remedy = "load the model it was distilled from"
    if info.base != model.base:
        raise CheckpointError(
            f"{path}: made for another base model ({theirs} {info.base}, {model.place} has {model.base}); {remedy}"
        )
    if info.context is None:
        _warn_of_age(path)
    elif info.context != model.context:
        raise CheckpointError(
            f"{path}: made for another generation branch or autoencoder over the same understanding stack ({theirs} "
            f"{info.context}, {model.place} has {model.context}); {remedy}"
        )


@cache
def _warn_of_age(path: Path) -> None:
    """Once a file, however often it is loaded."""
    log.warning(
        "%s: an older file, which tells the understanding stack that it belongs to, but not the generation branch and "
        "autoencoder; make sure that it was distilled from this model, or train it again, as files now tell both",
        path,
    )


def _finite_tensors(path: Path) -> dict[str, Tensor]:
    if has_adapters(path):
        raise CheckpointError(f"{path}: holds adapters, whose matrices have no mean; average whole branches")
    tensors = read_tensors(path, torch.float32)
    for key, value in tensors.items():
        require_finite(value, f"{path}: {key}")
    return tensors


def average_branches(shares: Mapping[str, float], out: Path, dtype: torch.dtype = torch.float32) -> BranchInfo:
    """Write the weighted mean of branches, given as file or name -> share: a model soup (arXiv 2203.05482).

    Branches that were trained from one another average well; those of separate runs do not. What the new file says
    about itself is what the first one does. Raises ValueError for shares that are not above 0 and for a file that is
    named twice, CheckpointError for one that is no branch, or was made for another model, number of evaluations, shift
    or scales than the first, NotFiniteError for one with numbers that are none.
    """
    if not shares or min(shares.values()) <= 0:
        raise ValueError(f"shares must be above 0, of one branch or more: {dict(shares)}")
    total = sum(shares.values())
    paths = {branch_file(name).resolve(): share / total for name, share in shares.items()}
    if len(paths) < len(shares):
        raise ValueError(f"{', '.join(shares)}: two of them are one file; name each branch once")
    first, *others = paths
    info = read_info(first)
    mean = {key: value * paths[first] for key, value in _finite_tensors(first).items()}
    for path in others:
        other = replace(read_info(path), stage=info.stage, model=info.model)
        if None in (info.context, other.context):  # what one of them cannot tell, their mean cannot
            info, other = replace(info, context=None), replace(other, context=None)
        if other != info:
            raise CheckpointError(f"{path}: {other} does not average with {first}: {info}; choose branches made alike")
        tensors = _finite_tensors(path)
        check_keys(str(path), {k: v.shape for k, v in mean.items()}, {k: v.shape for k, v in tensors.items()})
        for key, value in tensors.items():
            mean[key] += value * paths[path]
    write_tensors({k: v.to(dtype) for k, v in mean.items()}, out, info.metadata())
    return info
