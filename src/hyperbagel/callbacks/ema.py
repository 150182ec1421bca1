"""Exponential moving average of the weights of one submodule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor

from hyperbagel.training.averages import move_towards
from hyperbagel.training.sharding import placed_like, whole_values
from hyperbagel.training.stage import student_updates


class EMA(Callback):
    """Averages the trained parameters of one submodule of a stage; validation, test and export use the average.

    The average is in the checkpoint, so that resuming is exact. Early in a run it follows faster: the decay after n
    updates is min(decay, (1 + n) / (10 + n)).

    Args:
        decay: share of the old average that is kept at a batch with an update, or several.
        module: path of the submodule in the stage, such as `model` or `student`.

    Examples:
        >>> EMA(decay=0.99, module="student").state_key
        "EMA{'module': 'student'}"
    """

    def __init__(self, decay: float = 0.999, module: str = "model") -> None:
        if not 0 < decay < 1:
            raise ValueError(f"EMA decay is {decay}: it must be between 0 and 1")
        self.decay, self.module = decay, module
        self._average: dict[str, Tensor] = {}
        self._updates = 0
        self._swapped = False

    @property
    def state_key(self) -> str:
        """One for each submodule, so that several averages can be kept."""
        return self._generate_state_key(module=self.module)

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of updates in it. Of sharded weights it is gathered for the first process, which
        writes what callbacks keep."""
        average = self._average
        if any(isinstance(value, DTensor) for value in average.values()):
            average = whole_values(average, keep=torch.distributed.get_rank() == 0)
        return {"average": average, "updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a saved average."""
        self._average, self._updates = dict(state_dict["average"]), state_dict["updates"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with the weights as they are, unless the checkpoint brings an average. ValueError if nothing trains."""
        parameters = self._parameters(pl_module)
        if not parameters:
            raise ValueError(f"EMA: {self.module!r} has no parameters that train; name another submodule")
        if not self._average:
            self._average = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._check(parameters)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Strategies that shard bring what was saved only now."""
        self._check(self._parameters(pl_module))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the weights after an update of the student."""
        steps = student_updates(pl_module)
        if steps == self._updates:
            return
        self._updates = steps
        decay = min(self.decay, (1 + steps) / (10 + steps))
        parameters = self._parameters(pl_module)
        move_towards(self._average.values(), (parameters[name] for name in self._average), 1 - decay)

    def swap(self, pl_module: L.LightningModule) -> None:
        """Exchange weights and average in place; a second call exchanges them back."""
        parameters = self._parameters(pl_module)
        self._check(parameters)
        with torch.no_grad():
            for name, value in self._average.items():
                current = parameters[name].detach().clone()
                parameters[name].copy_(value)
                value.copy_(current)
        self._swapped = not self._swapped

    @contextmanager
    def averaged(self, pl_module: L.LightningModule) -> Iterator[None]:
        """The average in place of the weights, where there is one and it is not in place already."""
        if not self._average or self._swapped:
            yield
            return
        self.swap(pl_module)
        try:
            yield
        finally:
            self.swap(pl_module)

    def _enter(self, pl_module: L.LightningModule) -> None:
        if self._average and not self._swapped:
            self.swap(pl_module)

    def _leave(self, pl_module: L.LightningModule) -> None:
        if self._swapped:
            self.swap(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate the average."""
        self._enter(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Back to the weights that train."""
        self._leave(pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Test the average."""
        self._enter(pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Back to the weights that train."""
        self._leave(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """A checkpoint that is written now must hold each in its place."""
        self._leave(pl_module)

    def _parameters(self, pl_module: L.LightningModule) -> dict[str, Tensor]:
        module = pl_module.get_submodule(self.module)
        return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}

    def _check(self, parameters: dict[str, Tensor]) -> None:
        """Bring the average to where the parameters are. ValueError if it is of other parameters."""
        if set(self._average) != set(parameters):
            raise ValueError(
                f"EMA: the saved average of {self.module!r} is not of the parameters that train now; resume with the "
                "same stage settings"
            )
        self._average = {name: placed_like(value, parameters[name]) for name, value in self._average.items()}
