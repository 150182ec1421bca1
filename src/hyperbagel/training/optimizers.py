"""Muon for matrices, AdamW for the rest, as one optimizer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from hyperbagel.bagel.processor import cpu_multiplies_bfloat16


class BatchedMuon(Muon):
    """PyTorch's Muon, with matrices of one shape updated together, and on many CPUs orthogonalised in float32.

    Those without instructions for bfloat16, which PyTorch's Muon takes, multiply it ten times as slowly. Learning
    rates are adjusted to match AdamW's update size.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update."""
        loss = _loss(closure)
        for group in self.param_groups:
            by_shape: defaultdict[tuple[torch.Size, torch.device], list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[param.shape, param.device].append(param)
            for (shape, _), params in by_shape.items():
                updates = torch.stack(self._with_momentum(params, group["momentum"]))
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                orthogonal = _orthogonal(updates, group).to(params[0].dtype)
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(orthogonal), alpha=-rate)
        return loss

    def _with_momentum(self, params: list[Tensor], momentum: float) -> tuple[Tensor, ...]:
        """The gradients with Nesterov momentum."""
        gradients = [param.grad for param in params if param.grad is not None]
        for param, gradient in zip(params, gradients, strict=True):
            if "momentum_buffer" not in self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(gradient)
        buffers = [self.state[param]["momentum_buffer"] for param in params]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, buffers, momentum)


def _loss(closure: Callable[[], Any] | None) -> Any:
    """What an optimizer's closure returns, if there is one; it takes gradients."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _orthogonal(updates: Tensor, group: dict[str, Any]) -> Tensor:
    """Newton-Schulz iteration of Muon on updates (k, m, n); singular values of the results are about 1."""
    a, b, c = group["ns_coefficients"]
    slow = updates.device.type == "cpu" and not cpu_multiplies_bfloat16()
    x = updates.float() if slow else updates.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class MuonWithAdamW(Optimizer):
    """Muon on hidden weight matrices, AdamW on embeddings, heads, norms and biases.

    Args:
        params: named parameters, as `module.named_parameters()` yields them; names choose the optimizer.
        lr: learning rate of Muon, which is scaled to match AdamW's update size.
        adamw_lr: learning rate of AdamW.
        weight_decay: decoupled weight decay of the matrices.
        momentum: of Muon.
        rates: learning rates of AdamW for parameters with such parts in their names, as {"heads": 0.002}: those of a
            critic are new, where its backbone is trained already.
        exclude: parts of names whose matrices AdamW takes.

    Raises TypeError when the parameters come without names, ValueError when there are none.

    Examples:
        >>> net = torch.nn.ModuleDict({"hidden": torch.nn.Linear(4, 4), "heads": torch.nn.Linear(4, 1)})
        >>> optimizer = MuonWithAdamW(net.named_parameters(), lr=0.0002, rates={"heads": 0.002})
        >>> [group["lr"] for group in optimizer.param_groups]  # hidden's matrix by Muon, its bias, and heads
        [0.0002, 0.001, 0.002]
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        lr: float = 2e-3,
        adamw_lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        exclude: tuple[str, ...] = ("embed", "lm_head", "llm2vae", "vae2llm"),
        rates: Mapping[str, float] | None = None,
    ) -> None:
        named = list(params)
        if not named:
            raise ValueError("MuonWithAdamW got no parameters: nothing of the model trains")
        if any(not isinstance(entry, tuple) for entry in named):
            raise TypeError("MuonWithAdamW needs named parameters: pass module.named_parameters()")
        matrices: list[Tensor] = []
        by_rate: defaultdict[float, list[Tensor]] = defaultdict(list)
        for name, param in named:
            own = next((rate for part, rate in (rates or {}).items() if part in name), None)
            if own is None and param.ndim == 2 and not any(part in name for part in exclude):
                matrices.append(param)
            else:
                by_rate[adamw_lr if own is None else own].append(param)
        self._parts: list[Optimizer] = []
        if matrices:
            self._parts.append(BatchedMuon(matrices, lr, weight_decay, momentum))
        for rate, rest in by_rate.items():
            fused = all(p.is_cuda for p in rest) or None  # one kernel for all; elsewhere what PyTorch does by itself
            self._parts.append(AdamW(rest, rate, betas=(0.9, 0.98), weight_decay=0.0, fused=fused))
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of both parts."""
        loss = _loss(closure)
        for part, group in zip(self._parts, self.param_groups, strict=True):
            # Loading a state replaces both containers, so the parts are pointed at them anew.
            part.state, part.param_groups = self.state, [group]
            part.step()
        return loss
