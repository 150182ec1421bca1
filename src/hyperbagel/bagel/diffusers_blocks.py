"""diffusers' building blocks of an autoencoder, without the hundreds of modules that it imports beside them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

_UNUSED = ("torch._dynamo", "transformers", "torchao")
"""What diffusers does without where it cannot be imported, which takes seconds: these blocks are neither compiled nor
quantised."""

_KINDS = ("diffusers.models.autoencoders", "diffusers.models.transformers", "diffusers.models.unets")
"""Packages that import every network of their kind, and with them what trains, quantises and hooks networks."""


class Blocks(NamedTuple):
    """Classes of diffusers, of whichever version is installed."""

    Encoder: Any
    Decoder: Any
    ResnetBlock2D: Any


@cache
def blocks() -> Blocks:
    """The classes. Imported at the first call: what never sees a picture needs none of them."""
    try:
        with _without_content(_KINDS):
            return _import()
    except ImportError:  # a version whose modules need more of these packages
        return _import()


def _import() -> Blocks:
    vae, resnet = (import_module(f"diffusers.models.{name}") for name in ("autoencoders.vae", "resnet"))
    return Blocks(vae.Encoder, vae.Decoder, resnet.ResnetBlock2D)


@contextmanager
def _without_content(packages: Sequence[str]) -> Iterator[None]:
    """Packages whose modules can be imported one by one inside, their own content left out, and what is unused too;
    imported later, all are whole."""
    empty = [name for name in packages if name not in sys.modules]
    unused = [name for name in _UNUSED if name not in sys.modules]
    try:
        for name in unused:
            sys.modules[name] = None  # type: ignore[assignment]  # cannot be imported
        for name in empty:
            spec = find_spec(name)
            if spec is None:
                raise ImportError(f"no package {name}")
            package = ModuleType(name)
            package.__path__ = list(spec.submodule_search_locations or ())
            sys.modules[name] = package
        yield
    finally:
        for name in (*unused, *empty):
            sys.modules.pop(name, None)
