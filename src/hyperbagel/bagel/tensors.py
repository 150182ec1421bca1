"""Reads safetensors files, tensor by tensor, and writes them whole or not at all."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hyperbagel.bagel.finite import require_finite
from hyperbagel.files import whole_file

_MAPPED = 2**26
"""Bytes of a file that are read before it is mapped anew."""


class CheckpointError(ValueError):
    """A checkpoint file that is missing, broken or made for another model; the message names file, keys and remedy."""


class NotFilled(TorchFunctionMode):
    """Parameters of modules that are made inside are not initialised, since they are replaced by what is read.

    On "meta", filling is only time: PyTorch imports its compiler for it.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """All functions but those that initialise."""
        given = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" and "tensor" in given:
            return given["tensor"]
        return func(*args, **given)


def open_tensors(path: Path) -> Any:
    """An open safetensors file. Raises CheckpointError for one that is missing or broken."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; a checkpoint folder needs it")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); download or save it again") from error


def read_tensors(
    path: Path, dtype: torch.dtype | None = None, device: torch.device | None = None, left_out: Collection[str] = ()
) -> dict[str, Tensor]:
    """All tensors of a safetensors file on a device, floating ones converted to `dtype`. Raises CheckpointError.

    left_out: names of those that come as shapes only. Each tensor goes where it is to stay before the next one is read,
    and the file is mapped anew from time to time, so that beside the result little of it is in memory.
    """
    with open_tensors(path) as file:
        waiting = deque(file.keys())
    tensors: dict[str, Tensor] = {}
    while waiting:
        mapped = 0
        with open_tensors(path) as file:
            while waiting and mapped < _MAPPED:
                key = waiting.popleft()
                value = file.get_tensor(key)
                mapped += value.nbytes
                place = torch.device("meta") if key in left_out else device
                tensors[key] = value.to(place, dtype if value.is_floating_point() else None)
    return tensors


def metadata_of(path: Path) -> Mapping[str, str]:
    """The metadata of a safetensors file. Raises CheckpointError for one that is missing or broken."""
    with open_tensors(path) as file:
        return file.metadata() or {}


def named_tensors(paths: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of some files, of which only what is looked at is read."""
    for path in paths:
        with open_tensors(path) as file:
            yield from ((key, file.get_tensor(key)) for key in file.keys())


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, so that a crash leaves either the old file or the new one.

    Raises WriteError, and NotFiniteError for numbers that are none.
    """
    written = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    for key, value in written.items():
        require_finite(value, f"{path}: not written: {key}")
    with whole_file(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # as of any new file, where safetensors would let only its writer read
        save_file(written, partial, metadata=metadata)
        partial.chmod(mode)
