"""The flow-matching loss: mean squared error of the velocity, every latent token counting the same."""

from __future__ import annotations

from torch import Tensor

from hyperbagel.flow.schedule import velocity_target


def squared_velocity_error(velocity: Tensor, x_0: Tensor, noise: Tensor) -> Tensor:
    """Squared error against the target velocity e - x_0, unreduced and in float32; all (..., C) -> (..., C)."""
    return (velocity.float() - velocity_target(x_0, noise).float()).square()


def flow_matching_loss(squared_error: Tensor, generated: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean over channels, then over the tokens to be generated; times are not weighted. 0 if there are none.

    squared_error: (..., C), generated: (...) bool, such as `Layout.generated`. count: tokens to divide by, for a mean
    over several ranks or accumulated batches (default: those of this batch).
    """
    total = (squared_error.mean(-1) * generated).sum()
    return total / (generated.sum() if count is None else count).clamp(min=1)
