"""How much memory a stage needs on each device, from shapes alone.

Weights, gradients and optimizer states are counted exactly, on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from hyperbagel.training.distillation import DistillationStage
from hyperbagel.training.memory import ACTIVATION_BYTES, DocumentCost, Workload
from hyperbagel.training.sharding import shard_units
from hyperbagel.training.stage import Stage

_INNER = ("understanding", "generation", "autoencoder")


@dataclass(frozen=True)
class Cluster:
    """devices: how many take part; sharded: by FSDP, else each holds everything."""

    devices: int = 1
    sharded: bool = False


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each device. fixed: by part, whatever the batch; per_document: by part, for each document of a batch."""

    fixed: dict[str, int] = field(default_factory=dict)
    per_document: dict[str, int] = field(default_factory=dict)

    def total(self, batch: int) -> int:
        """With so many documents a device."""
        return sum(self.fixed.values()) + batch * sum(self.per_document.values())

    def largest_batch(self, memory: int) -> int:
        """Documents a device that fit into `memory` bytes; 0 when not even one does."""
        return max(0, (memory - self.total(0)) // max(1, sum(self.per_document.values())))


def plan(stage: LightningModule, cluster: Cluster, workload: Workload) -> MemoryPlan:
    """The memory of a stage that was built on the meta device. Raises ValueError for any other module."""
    if not isinstance(stage, Stage):
        raise ValueError(f"{type(stage).__name__} is no `Stage` whose memory could be planned")
    held = _Held(stage, cluster)
    optimizers = stage.configure_optimizers()[0]
    fixed = held.weights()
    fixed["gradients"] = held.gradients(optimizers)
    fixed["optimizer"] = sum(held.bytes(owner, state) for o in optimizers for owner, state in optimizer_states(o))
    if cluster.sharded:
        fixed["gathered layers"] = 2 * held.largest_unit()  # one in use, the next on its way
    return MemoryPlan(fixed, stage.memory(DocumentCost(stage.model, workload)))


class _Held:
    """What one device holds of tensors that belong to parameters."""

    def __init__(self, stage: Stage, cluster: Cluster) -> None:
        self.stage = stage
        self.devices = cluster.devices if cluster.sharded else 1
        self.units = list(shard_units(stage)) if isinstance(stage, DistillationStage) else []
        self._sharded = {id(p) for unit in self.units for p in unit.parameters()}

    def bytes(self, owner: Tensor, value: Tensor) -> int:
        """Of a tensor shaped like the parameter `owner`, with which it is sharded."""
        return value.nbytes // (self.devices if id(owner) in self._sharded else 1)

    def weights(self) -> dict[str, int]:
        """Parameters and buffers by part; what branches share counts once."""
        parts: dict[str, int] = {}
        for name, value in (*self.stage.named_parameters(), *self.stage.named_buffers()):
            first, second, *_ = (*name.split("."), "")
            part = second if first == "model" and second in _INNER else first
            parts[part] = parts.get(part, 0) + self.bytes(value, value)
        return {part: size for part, size in parts.items() if size >= 2**20 or part in _INNER}

    def gradients(self, optimizers: list[Optimizer]) -> int:
        """Of one network at a time, or of all when they are accumulated over several batches."""
        sizes = [sum(self.bytes(p, p) for p in _parameters(optimizer)) for optimizer in optimizers]
        accumulating = any(training.accumulate > 1 for training in self.stage.networks.values())
        return sum(sizes) if accumulating else max(sizes, default=0)

    def largest_unit(self) -> int:
        """The unsharded layer half with the most weights, as it is gathered: in bfloat16 or smaller."""
        return max((sum(p.numel() for p in unit.parameters()) for unit in self.units), default=0) * ACTIVATION_BYTES


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def optimizer_states(optimizer: Optimizer) -> Iterable[tuple[Tensor, Tensor]]:
    """The states that an optimizer keeps, with the parameter of each: those of one step on parameters of shape only."""
    for parameter in _parameters(optimizer):
        parameter.grad = torch.empty_like(parameter)
    for group in optimizer.param_groups:
        if group.get("fused"):
            group["fused"] = False  # such kernels keep the same, but are of devices with values
    optimizer.step()
    optimizer.zero_grad()
    for parameter, states in optimizer.state.items():
        yield from ((parameter, value) for value in states.values() if isinstance(value, Tensor))
