"""A resumed run trains by the settings that are configured now, not by those that its checkpoint was trained by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_NO_SETTINGS = ("params", "param_names")
_SCHEDULED = ("lr", "initial_lr")
_OF_DEVICE = ("foreach", "fused", "capturable")
"""Ways to compute the same, which go by the device at hand: nothing to tell of."""
_OF_STATE = ("amsgrad", "centered")
"""Settings with which an optimizer keeps other numbers, so that the state of before is of no use to it."""

Tell = Callable[[str], None]


def keep_settings(optimizer: Optimizer, tell: Tell) -> None:
    """When the optimizer loads a state, its own settings stay, and `tell` gets a line for each that differs.

    Of a scheduled learning rate the share stays that the schedule had reached. Loading raises ValueError for a changed
    setting that decides what an optimizer keeps.
    """

    def prepare(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(optimizer.param_groups, state["param_groups"], strict=False)  # their number is PyTorch's to check
        kept = [_kept(own, loaded, tell) for own, loaded in pairs]
        return {**state, "param_groups": [*kept, *state["param_groups"][len(kept) :]]}

    optimizer.register_load_state_dict_pre_hook(prepare)


def keep_base_rates(scheduler: LRScheduler) -> None:
    """Have a schedule start from the rates that its optimizer is configured with; PyTorch's load those of before."""
    groups = scheduler.optimizer.param_groups
    if hasattr(scheduler, "base_lrs") and all("initial_lr" in group for group in groups):
        scheduler.base_lrs = [group["initial_lr"] for group in groups]


def _kept(own: Mapping[str, Any], loaded: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """A group as it is loaded: what was configured, over what only the checkpoint has."""
    settings = {key: value for key, value in own.items() if key not in _NO_SETTINGS}
    before = {key: loaded[key] for key in settings if key in loaded and key not in _SCHEDULED}
    changed = {
        key: (value, settings[key])
        for key, value in before.items()
        if key not in _OF_DEVICE and not _equal(value, settings[key])
    }
    if fixed := [key for key in changed if key in _OF_STATE]:
        raise ValueError(f"{fixed[0]} of the optimizer was {changed[fixed[0]][0]} in the checkpoint: resume with that")
    old, new = (group.get("initial_lr", group.get("lr")) for group in (loaded, own))
    if not _equal(old, new):
        changed["lr"] = (old, new)
    if changed:
        told = ", ".join(f"{key} {value[1]} instead of {value[0]}" for key, value in changed.items())
        tell(f"settings of the optimizer are those of the configuration, not of the checkpoint: {told}")
    if "initial_lr" in own and "initial_lr" in loaded:
        settings["lr"] = loaded["lr"] if _equal(old, new) else (new * (loaded["lr"] / old) if old else own["lr"])
    return {**loaded, **settings}


def _equal(one: Any, other: Any) -> bool:
    """Of plain values; what is saved as a tuple may come back as a list."""
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return list(one) == list(other)
    return bool(one == other)
