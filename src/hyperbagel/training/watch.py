"""`Watch`: that losses and gradients stay numbers, without waiting for the device in every update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Watch:
    """Conditions that have to hold in training.

    deferring: look at them all together when `settle` is called, since each look waits for what the device still has to
    do; else at once.
    """

    def __init__(self) -> None:
        self.deferring = False
        self._pending: list[tuple[Tensor, Callable[[], str]]] = []

    def expect(self, condition: Tensor, message: Callable[[], str]) -> None:
        """Note a condition (), bool, and what is to be said when it does not hold.

        Raises as `settle`, unless deferring.
        """
        self._pending.append((condition.detach(), message))
        if not self.deferring:
            self.settle()

    def settle(self) -> None:
        """Raises FloatingPointError with the message of the first condition since the last call that did not hold."""
        pending, self._pending = self._pending, []
        if pending and not bool(torch.stack([condition for condition, _ in pending]).all()):
            raise FloatingPointError(next(message() for condition, message in pending if not bool(condition)))
