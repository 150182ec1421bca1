"""A warm start: fc1 and fc2 of a fresh head fitted by least squares, so that it drafts before it has learnt anything.

A draft step reads the embedding of a token and the feature before it, and has to give the token's own residual stream
after the target's last layer. Its layers start as the target's last ones. So fc1 is fitted to give that stream of the
token before, as later steps feed it back, and fc2 what enters those layers at the token itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hyperbagel.draft.batch import FeatureBatch
from hyperbagel.draft.head import DraftHead

_RIDGE = 1e-3
"""Share of themselves by which the inputs' squares are raised, so that few batches are not taken too seriously."""


class WarmStart:
    """Gathers batches, and fits fc1 and fc2 of a head to them.

    head: fresh, and not an EAGLE-3 one, whose first layer has no fc2; batches: how many are gathered; total: sums a
    tensor over all processes.
    """

    def __init__(self, head: DraftHead, batches: int, total: Callable[[Tensor], Tensor]) -> None:
        self.head, self.left, self.total = head, batches, total
        self._sums: Tensor | None = None

    @torch.no_grad()
    def take(self, batch: FeatureBatch) -> bool:
        """Gather a batch; whether it was the last one, with which the head was fitted."""
        known, wanted = self._rows(batch)
        # The final norm makes all streams equally long, so each row counts by its own length.
        weight = wanted.pow(2).mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()
        rows = torch.cat([known, wanted], -1).double() * weight.double()
        products = rows.T @ rows
        self._sums = products if self._sums is None else self._sums + products
        self.left -= 1
        if self.left == 0:
            self._fit(self.total(self._sums))
        return self.left == 0

    def _rows(self, batch: FeatureBatch) -> tuple[Tensor, Tensor]:
        """What is known at each token, (R, D + Q * D): the normed embedding of the next one, and the levels. What is
        wanted, (R, 2 D): the stream after the last layer, and what enters the head's layers at the next token."""
        head = self.head
        assert head.fusion is not None
        embedded = head.fusion.norm(batch.embedded[:, 1:])
        levels = torch.cat([batch.layers[level][:, :-1] for level in head.features.levels], -1)
        entering = batch.layers[max(batch.layers) - len(head.layers)][:, 1:]
        # Padding repeats position 0, and the first token of all is like no other.
        real = batch.position[:, 1:] > 1
        known, wanted = torch.cat([embedded, levels], -1), torch.cat([batch.final[:, :-1], entering], -1)
        return known[real].float(), wanted[real].float()

    def _fit(self, sums: Tensor) -> None:
        head = self.head
        assert head.fusion is not None
        width, inputs = head.llm.hidden_size, (1 + head.config.queries) * head.llm.hidden_size
        known, crossed = sums[:inputs, :inputs], sums[:inputs, inputs:]
        fc1 = _solve(known[width:, width:], crossed[width:, :width])
        # The same sums, seen through fc1.
        through = torch.block_diag(torch.eye(width, dtype=fc1.dtype, device=fc1.device), fc1)
        fc2 = _solve(through.T @ known @ through, through.T @ crossed[:, width:])
        head.features.fc1.weight.copy_(fc1.T)
        head.fusion.fc2.weight.copy_(fc2.T)


def _solve(squares: Tensor, crossed: Tensor) -> Tensor:
    """The weights (inputs, outputs) of least squares, a little shrunk."""
    own = squares.diagonal()
    ridge = _RIDGE * (own + 1e-6 * own.mean())
    return torch.linalg.solve(squares + ridge.diag(), crossed)
