"""A distilled branch as low-rank adapters over the model's own: files in PEFT's format with official module names.

An adapted branch shares the large weights of the original one, so that several in memory cost little more than one, and
contexts, which the original reads, are none of its business. Beside the low-rank matrices a file holds in full what is
small: norms, biases, embedders, and whatever else differs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperbagel.bagel.absent import Absent, NotLoadedError
from hyperbagel.bagel.branch import GenerationBranch, conditions_in
from hyperbagel.bagel.branch_info import ADAPTERS, BranchInfo
from hyperbagel.bagel.checkpoint import check_keys, official_key
from hyperbagel.bagel.tensors import open_tensors, read_tensors, write_tensors
from hyperbagel.files import write_json

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""PEFT's names of the files in a folder."""

TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of the experts, which get adapters."""

PREFIX = "base_model.model."
"""Before official names in files of adapters, as PEFT has it."""
_EXACT = 1024
"""Widest matrix of which all singular values are computed; of wider ones the largest, by a randomised method."""


class LowRankLinear(nn.Module):
    """A linear layer, whose weight may be shared, with a low-rank matrix on top.

    base_layer: D_in -> D_out; down: (rank, D_in); up: (D_out, rank).
    """

    def __init__(self, base_layer: nn.Linear, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down, self.up = (nn.Parameter(value, requires_grad=False) for value in (down, up))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D_in) -> (..., D_out)."""
        output: Tensor = self.base_layer(x) + self.addition(x)
        return output

    def addition(self, x: Tensor) -> Tensor:
        """What the matrix adds to the layer's own result: x (..., D_in) -> (..., D_out)."""
        return F.linear(F.linear(x, self.down), self.up)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the matrix to the weight in place; the weight must not be shared any more."""
        weight = self.base_layer.weight
        weight += (self.up.float() @ self.down.float()).to(weight)


def merged(branch: GenerationBranch) -> GenerationBranch:
    """A copy of a branch with the keys of a plain one: adapters, if it has any, are multiplied into its weights."""
    result = branch.copy()
    for name, module in list(result.named_modules()):
        if hasattr(module, "base_layer") and hasattr(module, "merge"):
            module.merge()
            result.set_submodule(name, module.base_layer)
    return result


def split(
    branch: GenerationBranch, base: GenerationBranch, rank: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor], dict[int, float]]:
    """What makes `branch` of `base`: low-rank matrices, all else that differs, and the error that rank leaves.

    Returns own name of a linear layer -> (down, up), own name of a tensor -> its value, and rank -> relative error of
    all low-rank matrices together (Frobenius norm of what is left of the difference, over that of the difference), for
    the powers of 2 up to `rank` and itself. Raises ValueError unless rank is 1 or more.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}: adapters need 1 or more")
    theirs = dict(base.state_dict())
    low, full = {}, {}
    squares, largest = 0.0, torch.zeros(rank, dtype=torch.float64)
    for name, value in branch.state_dict().items():
        before = theirs.get(name)
        if name.startswith("latent_pos_embed.") or (before is not None and torch.equal(before, value)):
            continue  # the table is never trained
        layer, _, kind = name.rpartition(".")
        if before is None or kind != "weight" or layer.rpartition(".")[2] not in TARGETS:
            full[name] = value
            continue
        difference = value.float() - before.float()
        up, singular, down = _largest(difference, rank)
        low[layer] = (singular.sqrt()[:, None] * down, up * singular.sqrt())
        squares += float(difference.double().square().sum())
        largest[: len(singular)] += singular.double().square().cpu()
    ranks = sorted({2**power for power in range(rank.bit_length())} | {rank})
    left = (squares - largest.cumsum(0)).clamp(min=0)
    return low, full, {r: (float(left[r - 1]) / squares) ** 0.5 if squares else 0.0 for r in ranks}


def _largest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """(out, in) -> the largest singular values (r,) with their vectors (out, r) and (r, in), r at most the rank."""
    if max(matrix.shape) <= _EXACT:
        up, singular, down = torch.linalg.svd(matrix, full_matrices=False)
        return up[:, :rank], singular[:rank], down[:rank]
    up, singular, vectors = torch.svd_lowrank(matrix, min(rank + 8, *matrix.shape), niter=4)
    return up[:, :rank], singular[:rank], vectors.mT[:rank]


def save_adapters(
    low: Mapping[str, tuple[Tensor, Tensor]], full: Mapping[str, Tensor], info: BranchInfo, folder: str | Path
) -> None:
    """Write what `split` returns as a folder in PEFT's format; `info` is in the metadata of its weights."""
    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    for layer, (down, up) in low.items():
        module = _module(layer)
        tensors |= {f"{PREFIX}{module}.lora_A.weight": down, f"{PREFIX}{module}.lora_B.weight": up}
    tensors |= {f"{PREFIX}{official_key(f'generation.{name}')}": value for name, value in full.items()}
    write_tensors(tensors, folder / FILE, {"format": "pt", **info.metadata(ADAPTERS)})
    rank = max((down.shape[0] for down, _ in low.values()), default=1)
    saved = {official_key(f"generation.{name}").rpartition(".")[0] for name in full} - {_module(layer) for layer in low}
    write_json(
        folder / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": info.model or None,
            "r": rank,
            "lora_alpha": rank,  # the matrices are added as they are
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted(_module(layer) for layer in low),
            "modules_to_save": sorted(saved),
            "inference_mode": True,
        },
    )


def load_adapters(path: Path, base: GenerationBranch | Absent) -> GenerationBranch:
    """The branch that a file of adapters makes of a model's own, whose large weights it shares.

    Raises CheckpointError for a file that does not fit, NotLoadedError for a model that was loaded without its own.
    """
    if isinstance(base, Absent):
        raise NotLoadedError(f"{path}: adapters go over the model's own generation branch, which was left out")
    weight = base.vae2llm.weight
    tensors = {
        key.removeprefix(PREFIX): value for key, value in read_tensors(path, weight.dtype, weight.device).items()
    }
    shared: dict[int, object] = {id(value): value for value in (*base.parameters(), *base.buffers())}
    branch: GenerationBranch = copy.deepcopy(base, shared)
    branch.add_condition(*conditions_in(tensors))
    names = {official_key(f"generation.{name}"): name for name in branch.state_dict()}
    modules = {key.rpartition(".")[0]: name.rpartition(".")[0] for key, name in names.items()}
    low = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    _check(path, tensors, low, branch, names)
    for key, value in tensors.items():
        if key in names:
            owner, _, kind = names[key].rpartition(".")
            _put(branch.get_submodule(owner), kind, value)
    for module in low:
        layer = branch.get_submodule(modules[module])
        assert isinstance(layer, nn.Linear)
        down, up = (tensors[f"{module}.lora_{part}.weight"] for part in "AB")
        branch.set_submodule(modules[module], LowRankLinear(layer, down, up))
    return branch


def _check(
    path: Path, tensors: Mapping[str, Tensor], low: set[str], branch: GenerationBranch, names: Mapping[str, str]
) -> None:
    """Raises CheckpointError for names and shapes that the model has not."""
    state = branch.state_dict()
    expected = {key: state[names[key]].shape for key in tensors if key in names}
    for module in low:
        down = tensors[f"{module}.lora_A.weight"]
        if (weight := f"{module}.weight") in names:
            rows, columns = state[names[weight]].shape
            expected[f"{module}.lora_A.weight"] = torch.Size((down.shape[0], columns))
            expected[f"{module}.lora_B.weight"] = torch.Size((rows, down.shape[0]))
    check_keys(str(path), expected, {key: value.shape for key, value in tensors.items()})


def _put(owner: nn.Module, kind: str, value: Tensor) -> None:
    """Set a tensor of a module, and not in place: the old one is shared."""
    if kind in owner._buffers:
        setattr(owner, kind, value)
    else:
        setattr(owner, kind, nn.Parameter(value, requires_grad=False))


def _module(layer: str) -> str:
    """Official name of a linear layer of a branch."""
    return official_key(f"generation.{layer}.weight").removesuffix(".weight")


def file_in(path: Path) -> Path:
    """The file of adapters where a folder of them stands for it."""
    return path / FILE if (path / FILE).is_file() else path


def ranks_in(path: Path) -> list[int]:
    """The ranks of the matrices in a file of adapters, ascending."""
    with open_tensors(path) as file:
        return sorted({file.get_slice(key).get_shape()[0] for key in file.keys() if key.endswith(".lora_A.weight")})
