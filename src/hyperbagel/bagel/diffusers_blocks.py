"""diffusers' building blocks of an autoencoder, without the hundreds of modules that it imports beside them."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

_PACKAGE = "diffusers"

_UNUSED = ("torch._dynamo", "transformers", "torchao", "accelerate")
"""What diffusers does without where it cannot be imported, which takes seconds: these blocks are neither compiled nor
quantised."""

_NETWORKS = "diffusers.models."
"""Beginning of the names of modules that define parts of networks, and stay: networks of others have the same parts."""

_REMADE = tuple(_NETWORKS + name for name in ("attention_dispatch", "lora", "modeling_utils", "transformers"))
"""Modules among them that know what could be imported, or define whole networks, which pipelines tell by class."""

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
    if _PACKAGE in sys.modules:
        return _import()
    try:
        with _reduced():
            return _import()
    except ImportError:  # a version whose modules need more of these packages
        return _import()


def _import() -> Blocks:
    vae, resnet = (import_module(f"diffusers.models.{name}") for name in ("autoencoders.vae", "resnet"))
    return Blocks(vae.Encoder, vae.Decoder, resnet.ResnetBlock2D)


@contextmanager
def _reduced() -> Iterator[None]:
    """Inside, modules of diffusers can be imported one by one: packages are without their own content, and what is
    unused is not there. Whoever imports diffusers afterwards gets it whole."""
    unused = [name for name in _UNUSED if name not in sys.modules]
    search = importlib.metadata.packages_distributions
    try:
        for name in unused:
            sys.modules[name] = None  # type: ignore[assignment]  # cannot be imported
        # diffusers goes through the files of all packages there are, to know versions of some.
        importlib.metadata.packages_distributions = dict
        for name in _KINDS:
            sys.modules[name] = _package(name)
        yield
    finally:
        importlib.metadata.packages_distributions = search
        made = {name for name in sys.modules if name.split(".")[0] == _PACKAGE}
        parts = {name for name in made if name.startswith(_NETWORKS) and not name.startswith(_REMADE)}
        for name in (made - parts) | {*unused, *_KINDS}:
            sys.modules.pop(name, None)


def _package(name: str) -> ModuleType:
    """A package without content, whose modules can be imported."""
    spec = find_spec(name)
    if spec is None:
        raise ImportError(f"no package {name}")
    package = ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations or ())
    return package
