"""What generation branches say about themselves, in their files and in folders that they were merged into."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from hyperbagel.bagel.tensors import CheckpointError

BRANCH, ADAPTERS, MERGED = "hyperbagel_branch", "hyperbagel_adapters", "hyperbagel_merged"
"""Keys of safetensors metadata: of a branch, of adapters, and of weights that a branch was merged into."""


@dataclass(frozen=True)
class BranchInfo:
    """What a branch file says about itself.

    stage: training stage that made it; nfe: evaluations per image it was made for (0: as many as the sampler takes);
    base: `base_hash` of its model; shift: timestep shift; text_scale, image_scale: ranges of the guidance inputs;
    context: `context_hash` of its model, None in files from before there was one; reader: which branch is to read
    source pictures, the original or this one; model: name of its model's folder, for messages.
    """

    stage: str
    nfe: int
    base: str
    shift: float = 3.0
    text_scale: tuple[float, float] | None = None
    image_scale: tuple[float, float] | None = None
    context: str | None = None
    reader: Literal["original", "student"] = "original"
    model: str = ""

    def __post_init__(self) -> None:
        """JSON has lists for ranges."""
        for name in ("text_scale", "image_scale"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))

    def misfits(self, steps: int, text_scale: float | None, image_scale: float | None = None) -> list[str]:
        """What of these the branch was not made for, in words; scales that are not used are None."""
        problems = []
        if self.nfe and steps != self.nfe:
            problems.append(f"made for {self.nfe} step{'s' * (self.nfe > 1)}, which {steps} is not")
        scales = (("text", text_scale, self.text_scale), ("image", image_scale, self.image_scale))
        for kind, scale, limits in scales:
            if scale is not None and limits is not None and not limits[0] <= scale <= limits[1]:
                problems.append(f"made for {kind} scales {limits[0]:g} to {limits[1]:g}, which {scale:g} is not")
        return problems

    def metadata(self, key: str = BRANCH) -> dict[str, str]:
        """As metadata of a safetensors file."""
        return {key: json.dumps(asdict(self))}


def info_in(metadata: Mapping[str, str], path: Path, key: str = BRANCH) -> BranchInfo | None:
    """What the metadata of a file says of a branch, None where it says nothing. Raises CheckpointError for nonsense."""
    if key not in metadata:
        return None
    try:
        return BranchInfo(**json.loads(metadata[key]))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: broken {key!r} metadata ({error}); save it again") from error
