"""Which settings of a run are not what they would be if nothing was said about them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from lightning import Trainer

_INIT, _CLASS = "init_args", "class_path"
_OF_COMMAND = {"seed_everything": 0}
_UNKNOWN = object()


def unusual(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a command line, by dotted name, that are not the defaults of the classes that take them.

    A class of which no default is known (one that cannot be imported) keeps all of its settings.
    """
    return {name: value for name, value in settings.items() if not _same(_default(name, settings), value)}


def _same(default: Any, value: Any) -> bool:
    return default is not _UNKNOWN and type(default) is type(value) and bool(default == value)


def _default(name: str, settings: Mapping[str, Any]) -> Any:
    """What a setting is by default: of the class whose argument it is part of, or of the trainer."""
    if name in _OF_COMMAND:
        return _OF_COMMAND[name]
    parts = name.split(".")
    for end in range(len(parts) - 1, -1, -1):
        owner = ".".join(parts[:end])
        class_path = settings.get(f"{owner}.{_CLASS}" if owner else _CLASS)
        if isinstance(class_path, str) and parts[end] == _INIT:
            return _of_argument(_imported(class_path), iter(parts[end + 1 :]))
    if parts[0] == "trainer":
        return _of_argument(Trainer, iter(parts[1:]))
    return _UNKNOWN


def _imported(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _of_argument(owner: Any, path: Iterator[str]) -> Any:
    """The default at a path: an argument of a class, and fields of the dataclass that is its default."""
    if owner is None:
        return _UNKNOWN
    parameter = inspect.signature(owner).parameters.get(next(path, ""))
    value = _UNKNOWN if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default
    for field in path:
        if value is _UNKNOWN:
            break
        value = getattr(value, field, _UNKNOWN)
    return value
