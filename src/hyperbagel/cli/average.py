"""`hyperbagel average`: the weighted mean of branches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hyperbagel.pipeline.device import DType


@dataclass(frozen=True)
class Average:
    """Write the weighted mean of branches that were trained from one another, also to store one in bfloat16.

    Args:
        out: safetensors file to write.
        branches: file of a branch, or name of one that comes with the package, and its share:
            "{scenes/nfe1: 2, runs/mine/branch.safetensors: 1}".
        dtype: type of the stored weights.
    """

    out: Path
    branches: dict[str, float]
    dtype: DType = "float32"


def average(options: Average) -> None:
    """The mean of branches that were trained from one another."""
    import torch

    from hyperbagel.bagel.branch_checkpoint import average_branches
    from hyperbagel.files import check_file
    from hyperbagel.pipeline.loading import refuse_model_folder

    refuse_model_folder(options.out.parent)
    check_file(options.out)
    info = average_branches(options.branches, options.out, getattr(torch, options.dtype))
    print(f"{options.out}: mean of {len(options.branches)} branches, NFE {info.nfe}, {options.dtype}")
