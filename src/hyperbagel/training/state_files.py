"""A training's whole state as small safetensors files, to go on from on another machine.

A folder holds `state.json`, the checkpoint with numbers in place of its tensors, and `state-00000.safetensors`, ...,
which hold these, flat and cut where a file is full. It is what goes through doors that a checkpoint is too large for;
joined again, it is a checkpoint as the trainer wrote it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyperbagel.files import whole_file, whole_folder, write_json

STRUCTURE = "state.json"
MAX_BYTES = 16 * 2**20
"""Largest file that is written, in bytes."""

_ENTRY = 128
"""Room for a tensor's line in a file's table of contents, in bytes."""
_WEIGHTS = "state_dict"
"""Where a checkpoint of Lightning has the weights; what is beside them is the state of optimizers and averages."""


class StateError(ValueError):
    """A checkpoint or a folder of state files that cannot be used; the message names the file and the remedy."""


def split_checkpoint(
    checkpoint: Path,
    folder: Path,
    weights: torch.dtype = torch.float32,
    others: torch.dtype = torch.float32,
    max_bytes: int = MAX_BYTES,
) -> int:
    """Write a checkpoint as state files; returns how many.

    weights: type in which float32 weights are stored; others: likewise of the optimizers' state and of averages.
    Rounded ones are float32 again when they are joined; single numbers, such as counts of steps, are not rounded. State
    files in the folder are replaced. Raises StateError for a file that is no checkpoint, and for a folder that holds
    anything else.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / STRUCTURE).is_file():
        raise StateError(f"{folder}: holds other files, which would be lost; name a new folder")
    content = _read_checkpoint(checkpoint)
    pieces: list[Tensor] = []
    structure = {
        key: _encode(value, weights if key == _WEIGHTS else others, pieces, checkpoint)
        for key, value in content.items()
    }
    files = list(_filled(pieces, max_bytes - _ENTRY))
    with whole_folder(folder) as partial:
        for number, tensors in enumerate(files):
            save_file(tensors, partial / _name(number))
        write_json(partial / STRUCTURE, {"files": len(files), "checkpoint": structure})
    return len(files)


def join_checkpoint(folder: Path, checkpoint: Path) -> None:
    """Write the checkpoint that a folder of state files was made of. Raises StateError for one that is not whole."""
    try:
        stored = json.loads((folder / STRUCTURE).read_text())
        chunks: dict[str, Tensor] = {}
        for number in range(stored["files"]):
            chunks |= load_file(folder / _name(number))
        content = {key: _decode(value, chunks) for key, value in stored["checkpoint"].items()}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise StateError(
            f"{folder}: not a whole folder of state files ({error}); copy it again, or make it anew with "
            "`hyperbagel checkpoint split`"
        ) from error
    with whole_file(checkpoint) as partial:
        torch.save(content, partial)


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors and plain values only."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise StateError(f"{path}: no such file; give a checkpoint such as checkpoints/last.ckpt") from None
    except Exception as error:  # zip files, pickles and empty files each fail in their own way
        cause = str(error).partition("\n")[0]
        raise StateError(f"{path}: not a checkpoint of a training ({cause}); give a last.ckpt") from error
    if not isinstance(content, dict) or _WEIGHTS not in content:
        raise StateError(f"{path}: has no {_WEIGHTS!r}; give a checkpoint of a training, such as last.ckpt")
    return content


def _name(number: int) -> str:
    return f"state-{number:05d}.safetensors"


def _encode(value: Any, dtype: torch.dtype, pieces: list[Tensor], source: Path) -> Any:
    """A value as JSON, its tensors replaced by their place in `pieces`, to which they are added.

    Containers become {"dict": [[key, value], ...]}, {"list": ...} and {"tuple": ...}, since JSON knows no other keys
    than texts and no tuples.
    """
    if isinstance(value, Tensor):
        stored = value.to(dtype) if value.dtype == torch.float32 and value.ndim else value
        pieces.append(stored.detach().contiguous().flatten())
        return {"tensor": len(pieces) - 1, "shape": list(value.shape), "dtype": str(value.dtype).partition(".")[2]}
    if isinstance(value, dict):
        return {"dict": [[key, _encode(item, dtype, pieces, source)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(item, dtype, pieces, source) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise StateError(f"{source}: holds a {type(value).__name__}, which state files cannot; save it without")


def _decode(value: Any, chunks: dict[str, Tensor]) -> Any:
    """What `_encode` was given."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        size, number = math.prod(value["shape"]), value["tensor"]
        parts: list[Tensor] = []
        while sum(map(len, parts)) < size or not parts:
            parts.append(chunks[f"{number}.{len(parts)}"])
        return torch.cat(parts).view(value["shape"]).to(getattr(torch, value["dtype"]))
    if "dict" in value:
        return {key: _decode(item, chunks) for key, item in value["dict"]}
    if "tuple" in value:
        return tuple(_decode(item, chunks) for item in value["tuple"])
    return [_decode(item, chunks) for item in value["list"]]


def _filled(pieces: list[Tensor], room: int) -> Iterator[dict[str, Tensor]]:
    """The flat tensors of one file after another, each of at most `room` bytes, named `<tensor>.<part of it>`."""
    file: dict[str, Tensor] = {}
    left = room
    for number, piece in enumerate(pieces):
        part = begin = 0
        while begin < len(piece) or not part:
            if left < _ENTRY + piece.element_size():
                yield file
                file, left = {}, room
            taken = piece[begin : begin + (left - _ENTRY) // piece.element_size()]
            file[f"{number}.{part}"] = taken.clone()
            begin, part, left = begin + len(taken), part + 1, left - _ENTRY - taken.nbytes
    yield file
