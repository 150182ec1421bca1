"""`hyperbagel checkpoint ...`: a training's state as small files, and back."""

from __future__ import annotations

from pathlib import Path

from hyperbagel.pipeline.device import DType


def split(checkpoint: Path, folder: Path, weights: DType = "float32", others: DType = "float32") -> str:
    """Write a training's checkpoint as safetensors files below 16 MiB, to be carried to another machine.

    Args:
        checkpoint: file that a training wrote, such as runs/mine/checkpoints/last.ckpt.
        folder: where the files are written.
        weights: type in which weights are stored; rounded ones go on as float32.
        others: type in which the state of optimizers and moving averages are stored.
    """
    import torch

    from hyperbagel.training.state_files import split_checkpoint

    count = split_checkpoint(checkpoint, folder, getattr(torch, weights), getattr(torch, others))
    size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    return f"{folder}: {count} files, {size:.1f} MiB"


def join(folder: Path, checkpoint: Path) -> str:
    """Write the checkpoint that a folder of state files was made of; a training goes on from it with `--ckpt_path`.

    Args:
        folder: what `hyperbagel checkpoint split` wrote.
        checkpoint: file to write, such as runs/mine/checkpoints/last.ckpt.
    """
    from hyperbagel.training.state_files import join_checkpoint

    join_checkpoint(folder, checkpoint)
    return f"{checkpoint}: {checkpoint.stat().st_size / 2**20:.1f} MiB"
