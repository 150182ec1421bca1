"""Muon for matrices, AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """Muon on hidden weight matrices, AdamW on embeddings, heads, norms and biases.

    Args:
        params: named parameters, as `module.named_parameters()` yields them; names choose the optimizer.
        lr: learning rate of Muon, which is scaled to match AdamW's update size.
        adamw_lr: learning rate of AdamW.
        weight_decay: decoupled weight decay of the matrices.
        momentum: of Muon.
        exclude: parts of names whose matrices AdamW takes.

    Raises TypeError when the parameters come without names, ValueError when there are none.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        lr: float = 2e-3,
        adamw_lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        exclude: tuple[str, ...] = ("embed", "lm_head", "llm2vae", "vae2llm"),
    ) -> None:
        named = list(params)
        if not named:
            raise ValueError("MuonWithAdamW got no parameters: nothing of the model trains")
        if any(not isinstance(entry, tuple) for entry in named):
            raise TypeError("MuonWithAdamW needs named parameters: pass module.named_parameters()")
        matrices = [p for name, p in named if p.ndim == 2 and not any(part in name for part in exclude)]
        chosen = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in chosen]
        self._parts: list[Optimizer] = []
        if matrices:
            muon = Muon(matrices, lr, weight_decay, momentum, adjust_lr_fn="match_rms_adamw")
            self._parts.append(muon)
        if rest:
            self._parts.append(AdamW(rest, adamw_lr, betas=(0.9, 0.98), weight_decay=0.0))
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of both parts."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, group in zip(self._parts, self.param_groups, strict=True):
            # Loading a state replaces both containers, so the parts are pointed at them anew.
            part.state, part.param_groups = self.state, [group]
            part.step()
        return loss
