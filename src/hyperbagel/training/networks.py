"""How one network of a stage is trained: its optimizer, clipping, accumulation, and full or low-rank weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from hyperbagel.bagel.adapters import TARGETS
from hyperbagel.bagel.adapters import merged as merged
from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE, GenerationBranch


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters in a branch instead of training it all; needs `pip install peft`.

    The frozen weights are shared with the branch it was made from.
    """

    rank: int = 64
    """Rank of the adapters."""
    alpha: int = 64
    """Scale of the adapters: what they add is multiplied by alpha / rank."""
    targets: tuple[str, ...] = TARGETS
    """Linear layers that get an adapter."""
    full: tuple[str, ...] = ("time_embedder", "vae2llm", "llm2vae")
    """Parts that train in full because they are small; embedders of conditions, which may start untrained, always
    do."""
    merge: bool = True
    """Whether the branch is exported with the adapters in its weights; else the export is a folder of adapters over the
    original, for a student that starts as it."""


@dataclass(frozen=True)
class Training:
    """How one network is trained.

    Examples:
        >>> from functools import partial
        >>> training = Training(partial(torch.optim.AdamW, lr=1e-4), accumulate=4)
        >>> training.clip, training.accumulate
        (1.0, 4)
    """

    optimizer: OptimizerCallable = torch.optim.AdamW
    """Optimizer of the network's named parameters."""
    scheduler: LRSchedulerCallable | None = None
    """Scheduler of the learning rate, stepped with the optimizer; None: the rate stays."""
    clip: float = 1.0
    """Largest norm of the network's gradient, 0 for no clipping."""
    accumulate: int = 1
    """Backward passes per optimizer step."""
    lora: LoRA | None = None
    """Train these adapters only; None: the whole network."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the weights that train, None for the model's. float32 over a frozen model in bfloat16 loses no small
    updates; the two meet under the trainer's `precision: bf16-mixed`."""

    def __post_init__(self) -> None:
        if self.clip < 0 or self.accumulate < 1:
            raise ValueError(f"need clip >= 0 and accumulate >= 1, got clip={self.clip}, accumulate={self.accumulate}")

    def of_whole_weights(self, network: nn.Module) -> Training:
        """The same, for a network that has no adapters; what trains of it gets the type that is asked for.

        Raises ValueError where adapters are asked for.
        """
        if self.lora is not None:
            raise ValueError("student.lora: adapters train in distillation stages, this one trains whole weights")
        self.cast(network)
        return self

    def cast(self, network: nn.Module) -> None:
        """Have the weights of a network that train in the type that is asked for."""
        if self.dtype is not None:
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(getattr(torch, self.dtype))


def trainable_branch(
    source: GenerationBranch, training: Training, conditions: Sequence[str] = (TEXT_SCALE, IMAGE_SCALE)
) -> GenerationBranch:
    """An independent branch that starts as `source` and trains as `training` says.

    conditions: it takes these, even if `source` does not.

    Raises ImportError when LoRA is asked for without peft, ValueError when no layer has a target's name.
    """
    if training.lora is None:
        branch = source.copy()
        branch.add_condition(*conditions)
        branch.requires_grad_(True)
    else:
        # The weights stay those of `source`: several adapted branches cost one.
        branch = copy.deepcopy(source, {id(p): p for p in source.parameters()})
        branch.add_condition(*conditions)
        _adapt(branch, training.lora)
    training.cast(branch)
    return branch


def _adapt(branch: GenerationBranch, lora: LoRA) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("training with LoRA needs peft: pip install peft") from error

    prefixes = _in_full(branch, lora)
    for name, part in list(branch.named_parameters()):
        if name.startswith(prefixes):
            owner = branch.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], nn.Parameter(part.detach().clone()))
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets))
    inject_adapter_in_model(config, branch)
    for name, part in branch.named_parameters():
        part.requires_grad_("lora_" in name or name.startswith(prefixes))


def _in_full(branch: GenerationBranch, lora: LoRA) -> tuple[str, ...]:
    """Beginnings of the names of what trains in full beside adapters."""
    return (*lora.full, *(f"{condition}_embedder" for condition in branch.conditions))


def adapters_in(branch: GenerationBranch, lora: LoRA) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """The adapters of a branch and what trains in full beside them, as `bagel.adapters.save_adapters` writes them."""
    low = {}
    for name, module in branch.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "lora_A"):
            down, up = (getattr(module, f"lora_{part}")["default"].weight.detach() for part in "AB")
            low[name] = (down, up * module.scaling["default"])
    prefixes = _in_full(branch, lora)
    return low, {name: value.detach() for name, value in branch.named_parameters() if name.startswith(prefixes)}


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No gradients for these modules' parameters inside; gradients still flow through them. Backward belongs inside."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
