"""FSDP2 over branches: every part whose forward runs is its own unit, since a branch as a whole has no forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.mot import ExpertLayer
from hyperbagel.critics.heads import HeadStack


def shard_units(network: nn.Module) -> Iterator[nn.Module]:
    """The parts of branches, critics and understanding layers that are sharded, each as one unit: halves of layers,
    projections, embedders, heads."""
    for module in network.modules():
        units: list[nn.Module] = []
        if isinstance(module, ExpertLayer):
            units = [module.input, module.output]
        elif isinstance(module, GenerationBranch):
            units = [child for child in module.children() if not isinstance(child, nn.ModuleList)]
        elif isinstance(module, HeadStack):
            units = list(module)
        yield from (unit for unit in units if any(True for _ in unit.parameters()))


def shard(network: nn.Module, mesh: DeviceMesh, gathered_dtype: torch.dtype | None = None) -> None:
    """Shard the units of a network over a mesh.

    They free their gathered weights after use (`reshard_after_forward`), so that several branches fit beside each
    other. gathered_dtype: in which full-precision weights are gathered for use, None for their own.
    """
    # Inputs are autocast's affair: times and latents must not be rounded.
    reduced = None if gathered_dtype is None else torch.float32
    policy = MixedPrecisionPolicy(gathered_dtype, reduced, cast_forward_inputs=False)
    for unit in shard_units(network):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=policy)


def whole_values(values: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Values by name with those that are sharded as whole ones, one after the other, all on the CPU; none where they
    are not kept. Collective."""
    found = {}
    for name, value in values.items():
        value = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            found[name] = value.cpu()
    return found


def placed_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A value of a parameter where that one is, sharded as it is. Collective where it is."""
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)


def gathered(branch: GenerationBranch, config: BagelConfig, keep: bool = True) -> GenerationBranch | None:
    """A branch with whole weights: itself, or a copy on the CPU of a sharded one. Collective; processes that do not
    keep what is gathered, one weight after the other, get None.

    Raises ValueError for a sharded branch with adapters, whose weights cannot be merged.
    """
    state = branch.state_dict()
    if not any(isinstance(value, DTensor) for value in state.values()):
        return branch
    if any("lora_" in name for name in state):
        raise ValueError("a sharded low-rank branch cannot be exported: train adapters without sharding")
    whole = whole_values(state, keep)
    if not keep:
        return None
    with torch.device("meta"):
        plain = GenerationBranch(config)
        plain.add_condition(*branch.conditions)
    plain.load_state_dict(whole, assign=True)
    return plain
