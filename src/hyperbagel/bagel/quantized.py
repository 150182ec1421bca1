"""Experts with weights of one byte or half a byte, by torchao: for inference on little memory.

Embeddings, LM head, norms, vision tower, autoencoder and what adapters add keep their type; the linear layers of the
experts, nine tenths of a model, are rounded.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn

from hyperbagel.bagel.joinable import separate

Quantization: TypeAlias = Literal["int8", "fp8", "nf4"]
"""int8: one byte a weight and a scale a row. fp8: likewise as floating numbers; GPUs that multiply these also round
what goes into a product, and are faster for it. nf4: half a byte and a scale for 64 weights."""

_BLOCK = 64
"""Weights with one scale in nf4."""
_SCALES = 256
"""Scales that are stored together in nf4, in a byte each."""


def is_plain(weight: Tensor) -> bool:
    """Whether a weight is an ordinary tensor, which any operator takes."""
    return type(weight) in (Tensor, nn.Parameter)


def quantize(kind: Quantization, device: torch.device, *modules: nn.Module | None) -> None:
    """Round the linear layers in the `layers` of understanding stacks and branches, in place, each on `device`, where
    it stays; what they share stays shared. Their gradients are switched off.

    Raises ImportError without torchao.
    """
    parts = [module for module in modules if module is not None]
    separate(*parts)
    layers = [layer for module in parts for layer in _linear_layers(module)]
    owners: defaultdict[int, list[nn.Linear]] = defaultdict(list)
    for layer in layers:
        if is_plain(layer.weight):
            owners[id(layer.weight)].append(layer)
    rounded = _rounding(kind, device)
    for sharing in owners.values():
        weight = nn.Parameter(rounded(sharing[0].weight.detach().to(device)), requires_grad=False)
        for layer in sharing:
            layer.weight = weight


def _linear_layers(module: nn.Module) -> Iterator[nn.Linear]:
    return (layer for layer in module.get_submodule("layers").modules() if isinstance(layer, nn.Linear))


def _rounding(kind: Quantization, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What rounds a weight."""
    try:
        from torchao import quantization
    except ImportError as error:
        raise ImportError(
            f"--quantize {kind} needs torchao, with PyTorch 2.10 or newer: pip install torchao"
        ) from error
    if kind == "nf4":
        return lambda weight: quantization.to_nf4(weight, *nf4_blocks(weight.numel()))
    config: Any = quantization.Int8WeightOnlyConfig() if kind == "int8" else _float8(quantization, device)

    def by_config(weight: Tensor) -> Tensor:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        quantization.quantize_(nn.Sequential(layer), config)
        return layer.weight.detach()

    return by_config


def _float8(quantization: Any, device: torch.device) -> Any:
    """Products in fp8 where the GPU has them, else weights that are brought back for each product."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        return quantization.Float8DynamicActivationFloat8WeightConfig(granularity=quantization.PerRow())
    return quantization.Float8WeightOnlyConfig()


def nf4_blocks(numbers: int) -> tuple[int, int]:
    """Weights with one scale, and scales that are stored together, in nf4: as usual, or fewer in small models.

    Raises ValueError for a number of weights that does not divide.
    """
    if numbers % _BLOCK:
        raise ValueError(f"nf4 takes weights of a multiple of {_BLOCK} numbers, not {numbers}: choose int8 or fp8")
    return _BLOCK, math.gcd(_SCALES, numbers // _BLOCK)


def bytes_of(kind: Quantization | None, layer: nn.Linear, itemsize: int) -> int:
    """Bytes of a layer's weight. itemsize: of a number that is not rounded."""
    numbers = layer.weight.numel()
    if kind is None:
        return numbers * itemsize
    if kind == "nf4":
        block, together = nf4_blocks(numbers)
        shared = 17 * itemsize  # the sixteen values, and the mean of all scales
        return numbers // 2 + numbers // block + numbers // (block * together) * itemsize + shared
    return numbers + layer.out_features * (itemsize if kind == "int8" else 4)


KINDS: Final[tuple[Quantization, ...]] = ("int8", "fp8", "nf4")
