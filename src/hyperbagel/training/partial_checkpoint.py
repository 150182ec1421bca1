"""Checkpoints without what is loaded from its own file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule
from torch import nn

from hyperbagel.messages import clip


class PartialCheckpoint(LightningModule):
    """A module that leaves named parts out of its state dict; strict loading still finds every other gap.

    counters: names of attributes, ints, that are in it too. As tensors of the module they would be on its device, and
    reading one would wait for all that the device still has to do.
    """

    counters: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self._unsaved: set[str] = set()
        self.register_state_dict_post_hook(_drop)
        self.register_load_state_dict_post_hook(_forgive)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch. Raises ValueError for the state of another module, or of one with other settings."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise ValueError(
                f"the checkpoint is not of {type(self).__name__} with these settings: {clip(error)}; go on with those "
                "that the run began with"
            ) from error

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.counters:
            destination[prefix + name] = torch.tensor(getattr(self, name))

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing_keys: list[str], *others: Any
    ) -> None:
        for name in self.counters:
            if (value := state_dict.pop(prefix + name, None)) is not None:
                setattr(self, name, int(value))
            else:
                missing_keys.append(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, *others)

    def leave_out(self, path: str) -> None:
        """Keep a frozen submodule, or one parameter, out of checkpoints."""
        self._unsaved.add(path)

    def leave_out_frozen(self, path: str, like: nn.Module) -> None:
        """Keep those parameters of the submodule `path` out of checkpoints that do not train in `like`."""
        self._unsaved |= {f"{path}.{n}" for n, p in like.named_parameters() if not p.requires_grad}

    def is_left_out(self, key: str) -> bool:
        """Whether a key of the state dict belongs to a part that was left out."""
        return any(key == path or key.startswith(f"{path}.") for path in self._unsaved)


def _drop(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    assert isinstance(module, PartialCheckpoint)
    for key in [k for k in state if k.startswith(prefix) and module.is_left_out(k.removeprefix(prefix))]:
        del state[key]


def _forgive(module: nn.Module, incompatible: Any) -> None:
    assert isinstance(module, PartialCheckpoint)
    incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if not module.is_left_out(k)]
