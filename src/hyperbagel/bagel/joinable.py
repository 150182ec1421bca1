"""Parts of layers with linear layers that read the same, which `bagel.joined` makes one product of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from torch import Tensor, nn


class Joinable(nn.Module):
    """A part of a layer with linear layers that read the same, and may be one product.

    together: their names; joined: computes them, None where each does so by itself. Whatever moves the weights, or puts
    another layer in place of one, takes them apart again.
    """

    together: ClassVar[tuple[str, ...]]
    joined: Callable[[Tensor], Sequence[Tensor]] | None = None

    def project(self, x: Tensor) -> Sequence[Tensor]:
        """x: (..., D_in) -> what each layer makes of it, (..., D_out)."""
        return [getattr(self, name)(x) for name in self.together] if self.joined is None else self.joined(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.joined = None
        return super()._apply(fn, recurse)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            self.__dict__.pop("joined", None)
        super().__setattr__(name, value)


def joinable(*modules: nn.Module) -> Iterator[Joinable]:
    """The parts of modules whose layers may be joined."""
    return (part for module in modules for part in module.modules() if isinstance(part, Joinable))


def separate(*modules: nn.Module) -> None:
    """Take apart what was joined, before weights are moved or replaced; they stay where they are."""
    for part in joinable(*modules):
        part.joined = None


@contextmanager
def apart(*modules: nn.Module) -> Iterator[None]:
    """Each layer by itself inside; its weights must not be moved or replaced there."""
    held = [(part, part.joined) for part in joinable(*modules)]
    separate(*modules)
    try:
        yield
    finally:
        for part, joined in held:
            part.joined = joined
