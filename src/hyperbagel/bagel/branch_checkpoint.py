"""Generation branches as files, each bound to the understanding stack that it was trained over."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from hyperbagel.bagel.absent import Absent
from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE, GenerationBranch, conditions_in
from hyperbagel.bagel.checkpoint import (
    CheckpointError,
    check_keys,
    official_key,
    part_digests,
    shapes_only,
)
from hyperbagel.bagel.fingerprint import digest, joined
from hyperbagel.bagel.finite import require_finite
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.shipped import is_shipped, resolve, shipped_files
from hyperbagel.bagel.tensors import open_tensors, read_tensors, write_tensors

log = logging.getLogger(__name__)

_METADATA = "hyperbagel_branch"


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
class BranchInfo:
    """What a branch file says about itself.

    stage: training stage that made it; nfe: evaluations per image it was made for (0: as many as the sampler takes);
    base: `base_hash` of its model; shift: timestep shift; text_scale, image_scale: ranges of the guidance inputs;
    context: `context_hash` of its model, None in files from before there was one.
    """

    stage: str
    nfe: int
    base: str
    shift: float = 3.0
    text_scale: tuple[float, float] | None = None
    image_scale: tuple[float, float] | None = None
    context: str | None = None

    def __post_init__(self) -> None:
        """JSON has lists for ranges."""
        for name in ("text_scale", "image_scale"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))

    def misfits(self, steps: int, text_scale: float | None, image_scale: float | None = None) -> list[str]:
        """What of these the branch was not made for, in words; scales that are not used are None."""
        problems = []
        if self.nfe and steps != self.nfe:
            problems.append(f"made for {self.nfe} step{'s' * (self.nfe > 1)}, which {steps} is not")
        scales = (("text", text_scale, self.text_scale), ("image", image_scale, self.image_scale))
        for kind, scale, limits in scales:
            if scale is not None and limits is not None and not limits[0] <= scale <= limits[1]:
                problems.append(f"made for {kind} scales {limits[0]:g} to {limits[1]:g}, which {scale:g} is not")
        return problems


def save_branch(branch: nn.Module, info: BranchInfo, path: str | Path) -> None:
    """Write a generation branch: official names (plus those of the embedders of conditions), `info` as metadata."""
    tensors = {official_key(f"generation.{name}"): value for name, value in branch.state_dict().items()}
    write_tensors(tensors, Path(path), {_METADATA: json.dumps(asdict(info))})


def read_info(path: Path) -> BranchInfo:
    """What a branch file says about itself; one of the package without a `context` belongs to the model beside it.

    Raises CheckpointError for a file that is missing, broken or no branch.
    """
    if not path.is_file():
        known = ", ".join(shipped_branches()) or "none"
        raise CheckpointError(f"{path}: no such file; give a branch file; branches in the package: {known}")
    metadata = _metadata(path)
    if _METADATA not in metadata:
        raise CheckpointError(f"{path}: not a generation branch (no 'hyperbagel_branch' metadata); pass a branch file")
    try:
        info = BranchInfo(**json.loads(metadata[_METADATA]))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: broken 'hyperbagel_branch' metadata ({error}); save the branch again"
        ) from error
    if info.context is None and is_shipped(path):
        return replace(info, context=joined(part_digests(path.parent)))
    return info


def _metadata(path: Path) -> dict[str, str]:
    with open_tensors(path) as file:
        return file.metadata() or {}


def shipped_branches() -> list[str]:
    """Names of the branches in the package."""
    return [name for name, path in shipped_files().items() if _METADATA in _metadata(path)]


def check_branch(path: str | Path, model: Bagel) -> BranchInfo:
    """What the branch in a file, or of a name, says about itself, if `model` can load it; tensors are not read.

    Raises CheckpointError when the file is missing, broken, not a branch, or belongs to another base model.
    """
    path = resolve(path, ".safetensors")
    info = read_info(path)
    _require_belonging(path, info, model)
    with open_tensors(path) as file:
        shapes = {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}
    expected = _without_weights(model, shapes).state_dict()
    check_keys(str(path), {official_key(f"generation.{k}"): v.shape for k, v in expected.items()}, shapes)
    return info


def _without_weights(model: Bagel, keys: Iterable[str]) -> GenerationBranch:
    """A branch such as the one in a file with these keys, on the meta device."""
    with torch.device("meta"):
        branch = GenerationBranch(model.config)
        branch.add_condition(*conditions_in(keys))
    return branch


def load_branch(path: str | Path, model: Bagel) -> tuple[GenerationBranch, BranchInfo]:
    """A branch for `model` from a file or a name (such as `scenes/nfe6`), in the model's dtype and on its device.

    With the meta device as default no file is read. Raises CheckpointError as `check_branch`.
    """
    if shapes_only():
        shapes = GenerationBranch(model.config).to(model.dtype)
        shapes.add_condition(TEXT_SCALE, IMAGE_SCALE)
        return shapes, BranchInfo("", 0, base_hash(model), context=context_hash(model))
    info = check_branch(path, model)
    tensors = read_tensors(resolve(path, ".safetensors"), model.dtype, model.device)
    branch = _without_weights(model, tensors)
    branch.load_state_dict({k: tensors[official_key(f"generation.{k}")] for k in branch.state_dict()}, assign=True)
    return branch, info


def _require_belonging(path: Path, info: BranchInfo, model: Bagel) -> None:
    """Raises CheckpointError for a branch of another model; warns where its file is too old to tell."""
    place, remedy = model.source or "this model", "load the model it was distilled from"
    if info.base != (own := base_hash(model)):
        raise CheckpointError(
            f"{path}: made for another base model (fingerprint {info.base}, {place} has {own}); {remedy}"
        )
    if info.context is None:
        _warn_of_age(path)
    elif info.context != (own := context_hash(model)):
        raise CheckpointError(
            f"{path}: made for another generation branch or autoencoder over the same understanding stack (fingerprint "
            f"{info.context}, {place} has {own}); {remedy}"
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
    paths = {resolve(name, ".safetensors").resolve(): share / total for name, share in shares.items()}
    if len(paths) < len(shares):
        raise ValueError(f"{', '.join(shares)}: two of them are one file; name each branch once")
    first, *others = paths
    info = read_info(first)
    mean = {key: value * paths[first] for key, value in _finite_tensors(first).items()}
    for path in others:
        other = replace(read_info(path), stage=info.stage)
        if None in (info.context, other.context):  # what one of them cannot tell, their mean cannot
            info, other = replace(info, context=None), replace(other, context=None)
        if other != info:
            raise CheckpointError(f"{path}: {other} does not average with {first}: {info}; choose branches made alike")
        tensors = _finite_tensors(path)
        check_keys(str(path), {k: v.shape for k, v in mean.items()}, {k: v.shape for k, v in tensors.items()})
        for key, value in tensors.items():
            mean[key] += value * paths[path]
    write_tensors({k: v.to(dtype) for k, v in mean.items()}, out, {_METADATA: json.dumps(asdict(info))})
    return info
