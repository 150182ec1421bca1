"""Callbacks that a configuration may give by name, so that one laid over another changes single settings of them.

A list (`trainer.callbacks`) is replaced whole. What is in `callbacks` by name is merged, and absent where it is null.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser
from lightning import Callback

from hyperbagel.cli.callback_names import FIRST, LAST


def add_named_callbacks(parser: ArgumentParser) -> None:
    """Have a parser take them as `callbacks.NAME`; none is there by default."""
    for name, path in (FIRST | LAST).items():
        module, _, attribute = path.rpartition(".")
        kind: type[Callback] = getattr(import_module(module), attribute)
        parser.add_argument(f"--callbacks.{name}", type=kind | None, default=None, help=f"{kind.__name__}, if any")


def in_order(named: Any, listed: Callback | Iterable[Callback] | None) -> list[Callback]:
    """All callbacks of a configuration: by name (a mapping, or None), and in its list."""
    listed = [listed] if isinstance(listed, Callback) else list(listed or ())
    first, last = ([named[name] for name in group if named[name] is not None] for group in (FIRST, LAST))
    return [*first, *listed, *last]
