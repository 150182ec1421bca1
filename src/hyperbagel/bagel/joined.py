"""Linear layers of experts that read the same, as one product: for drawing and answering on GPUs.

Narrow products, such as those of keys and values, leave most of a GPU idle, and each costs a launch. The layers' own
weights become parts of one tensor, so that nothing is stored twice, and names, values and files stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperbagel.bagel.adapters import LowRankLinear
from hyperbagel.bagel.joinable import joinable
from hyperbagel.bagel.quantized import is_plain

Whole: TypeAlias = tuple[Tensor, Tensor | None]
"""Weights (D_out of all, D_in) and biases (D_out of all)."""


class JoinedLinear:
    """What some layers, which may have adapters on top, make of one input, by one product of their weights.

    A copy of a module that holds it has weights of its own, and goes without.
    """

    def __init__(self, layers: Sequence[nn.Linear | LowRankLinear], whole: Whole) -> None:
        self.weight, self.bias = whole
        self.sizes = [_base(layer).out_features for layer in layers]
        self.adapters = [layer if isinstance(layer, LowRankLinear) else None for layer in layers]

    def __call__(self, x: Tensor) -> list[Tensor]:
        """x: (..., D_in) -> of each layer (..., D_out)."""
        parts = F.linear(x, self.weight, self.bias).split(self.sizes, dim=-1)
        return [
            part if adapter is None else part + adapter.addition(x)
            for part, adapter in zip(parts, self.adapters, strict=True)
        ]

    def __deepcopy__(self, memo: object) -> None:
        return None


@torch.no_grad()
def join(*modules: nn.Module) -> None:
    """Make one product of what is `Joinable` in modules on their device, for inference; weights that they share stay
    shared. Rounded weights, and those of which others share a part, stay apart."""
    owner: dict[int, tuple[int, ...]] = {}
    for part in joinable(*modules):
        layers = [part.get_submodule(name) for name in part.together]
        if not all(isinstance(layer, nn.Linear | LowRankLinear) for layer in layers):
            continue  # such as those of other adapters, which may train
        bases = [_base(layer) for layer in layers]
        _put_together([base.weight for base in bases], owner)
        _put_together([base.bias for base in bases if base.bias is not None], owner)
        whole = whole_of(bases)
        part.joined = None if whole is None else JoinedLinear(layers, whole)  # type: ignore[arg-type]


def whole_of(layers: Sequence[nn.Linear]) -> Whole | None:
    """Weights and biases of layers that were joined, as one tensor each; None for those that were not."""
    weight = _adjacent([layer.weight for layer in layers])
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if weight is None or not biases:
        return None if weight is None else (weight, None)
    bias = _adjacent(biases) if len(biases) == len(layers) else None
    return None if bias is None else (weight, bias)


def _base(layer: nn.Module) -> nn.Linear:
    base = layer.base_layer if isinstance(layer, LowRankLinear) else layer
    assert isinstance(base, nn.Linear)
    return base


def _put_together(values: Sequence[Tensor], owner: dict[int, tuple[int, ...]]) -> None:
    """Put parameters one behind the other, where that is possible. owner: parameter -> those that it is put together
    with."""
    key = tuple(map(id, values))
    if not values or not all(map(is_plain, values)) or any(owner.get(value, key) != key for value in key):
        return
    owner.update(dict.fromkeys(key, key))
    if _adjacent(values) is None:
        whole = torch.cat([value.detach() for value in values])
        for value, part in zip(values, whole.split([len(value) for value in values]), strict=True):
            value.data = part


def _adjacent(values: Sequence[Tensor]) -> Tensor | None:
    """The tensor (rows of all, ...) that values are parts of, if they lie one behind the other in memory."""
    if not all(map(is_plain, values)):
        return None
    first, rows = values[0], sum(map(len, values))
    place, end = first.untyped_storage().data_ptr(), first.storage_offset()
    for value in values:
        there = place and value.untyped_storage().data_ptr() == place and value.storage_offset() == end
        if not (there and value.is_contiguous() and value.shape[1:] == first.shape[1:]):
            return None
        end += value.numel()
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())
