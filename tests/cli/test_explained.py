"""Every setting that YAML or a command line can give is explained where it stands."""

from __future__ import annotations

import dataclasses
import inspect
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module
from pkgutil import walk_packages
from types import ModuleType
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser
from lightning import Callback, LightningDataModule, LightningModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import hyperbagel
from hyperbagel.callbacks.fidelity import Fidelity
from hyperbagel.cli.commands import find, options_of
from hyperbagel.cli.errors import CommandParser
from hyperbagel.cli.main import COMMANDS
from hyperbagel.cli.plan import PlanOptions
from hyperbagel.critics.pixel import VisionFeatures
from hyperbagel.datamodules.scenes import SceneSource
from hyperbagel.losses.base import LossTerm
from hyperbagel.losses.pairs import PairFilter
from hyperbagel.rewards.base import Reward

BASES = (LightningModule, LightningDataModule, Callback, LossTerm, Reward, VisionFeatures, Optimizer, LRScheduler)
CHOSEN = (SceneSource, Fidelity, PairFilter)
"""Classes that stand in YAML without a base class or a method by which they are recognized."""
METHODS = ("score", "score_sample", "detect", "classify")
"""What judges and detectors, which have no base class, are recognized by."""


@cache
def loaded() -> list[ModuleType]:
    """All modules of the package."""
    return [import_module(info.name) for info in walk_packages(hyperbagel.__path__, "hyperbagel.")]


@cache
def names() -> dict[str, Any]:
    """All names of the package: some types are imported for type checkers only."""
    return {name: value for module in loaded() for name, value in vars(module).items()}


def reachable() -> Iterator[type]:
    """Classes of the package that a class path can name."""
    for module in loaded():
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == module.__name__ and not inspect.isabstract(value):
                if getattr(value, "_is_protocol", False) or value.__name__.startswith("_"):
                    continue
                if issubclass(value, BASES) or any(callable(getattr(value, method, None)) for method in METHODS):
                    yield value


def inside(component: Callable[..., Any]) -> Iterator[type]:
    """Classes of the package in the types of a component's options, also those in lists, mappings and unions."""
    made = component.__init__ if inspect.isclass(component) else component  # type: ignore[misc]
    known = ChainMap(getattr(made, "__globals__", {}), names())
    types = [kind for name, kind in get_type_hints(made, None, known).items() if name != "return"]
    for kind in types:  # which grows
        types += get_args(kind)
        ours = inspect.isclass(kind) and kind.__module__.startswith("hyperbagel.")
        if ours and (dataclasses.is_dataclass(kind) or kind in CHOSEN):
            yield kind


def with_all_inside(components: Iterable[Callable[..., Any]]) -> list[Callable[..., Any]]:
    """Components, the classes in the types of their options, and so on."""
    found = list(components)
    for component in found:  # which grows
        found += [kind for kind in inside(component) if kind not in found]
    return found


def unexplained(component: Callable[..., Any]) -> list[str]:
    """Options of a class or a function that have no help."""
    parser: ArgumentParser = CommandParser()
    if inspect.isclass(component):
        parser.add_class_arguments(component)
    else:
        parser.add_function_arguments(component)
    return [action.dest for action in parser._actions if not (action.help or "").strip()]


def test_every_option_is_explained() -> None:
    classes = list(reachable())
    names = {value.__name__ for value in classes}
    assert {"DMDO", "InterleavedDataModule", "GenEval", "CLIPReward", "MuonWithAdamW", "WarmupStableDecay"} <= names
    targets = [t for entry in COMMANDS.values() for t in ([entry] if isinstance(entry, str) else entry.values())]
    functions = [find(target) for target in targets]
    parsed = [f for f in functions if list(inspect.signature(f).parameters) != ["arguments"]]
    commands = [*(options_of(function) for function in parsed), PlanOptions]
    everything = with_all_inside([*classes, *CHOSEN, *commands])
    assert {"Row", "Source", "Formatting", "HeldOutSettings", "DraftConfig", "PairFilter", "Device"} <= {
        component.__name__ for component in everything
    }
    missing = {component.__name__: unexplained(component) for component in everything}
    assert not {name: options for name, options in missing.items() if options}
