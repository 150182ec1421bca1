"""Every setting that YAML or a command line can give is explained where it stands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from pkgutil import walk_packages
from typing import Any

from jsonargparse import ArgumentParser
from lightning import Callback, LightningDataModule, LightningModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import hyperbagel
from hyperbagel.cli.commands import find, options_of
from hyperbagel.cli.errors import CommandParser
from hyperbagel.cli.main import COMMANDS
from hyperbagel.cli.plan import PlanOptions
from hyperbagel.critics.pixel import VisionFeatures
from hyperbagel.losses.base import LossTerm
from hyperbagel.rewards.base import Reward

BASES = (LightningModule, LightningDataModule, Callback, LossTerm, Reward, VisionFeatures, Optimizer, LRScheduler)
METHODS = ("score", "score_sample", "detect", "classify")
"""What judges and detectors, which have no base class, are recognized by."""


def reachable() -> Iterator[type]:
    """Classes of the package that a class path can name."""
    for info in walk_packages(hyperbagel.__path__, "hyperbagel."):
        for value in vars(import_module(info.name)).values():
            if inspect.isclass(value) and value.__module__ == info.name and not inspect.isabstract(value):
                if getattr(value, "_is_protocol", False) or value.__name__.startswith("_"):
                    continue
                if issubclass(value, BASES) or any(callable(getattr(value, method, None)) for method in METHODS):
                    yield value


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
    missing = {component.__name__: unexplained(component) for component in (*classes, *commands)}
    assert not {name: options for name, options in missing.items() if options}
