"""What stages have in common: what callbacks may ask of them, and checkpoints without frozen parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.embeddings import PositionTable
from hyperbagel.bagel.fingerprint import digest
from hyperbagel.bagel.model import Bagel
from hyperbagel.flow.guidance import EDITING, GENERATION
from hyperbagel.flow.sampler import Sampler
from hyperbagel.modules.partial_checkpoint import PartialCheckpoint

FINGERPRINT = "frozen_fingerprint"
_GENERATION, _EDITING = Sampler(guidance=GENERATION), Sampler(guidance=EDITING)


class EvaluatedStage(Protocol):
    """What evaluating callbacks need of a stage: the model, the branch that draws (None: the model's own), and how it
    samples generated and edited pictures."""

    model: Bagel
    branch: GenerationBranch | None
    sampler: Sampler
    editing_sampler: Sampler


def evaluated(stage: object, by: str) -> EvaluatedStage:
    """The stage as evaluating callbacks see it; by: who asks. Raises ValueError, naming what the stage lacks."""
    # Asked one by one: isinstance reads a protocol's attributes without __getattr__, and so finds no submodules.
    missing = [name for name in EvaluatedStage.__annotations__ if not hasattr(stage, name)]
    if missing:
        lacking = ", ".join(f"`{name}`" for name in missing)
        raise ValueError(f"{by} evaluates stages that draw; {type(stage).__name__} has no {lacking}")
    return cast(EvaluatedStage, stage)


@dataclass(frozen=True)
class Samplers:
    """How a stage draws pictures when it is evaluated."""

    generation: Sampler = _GENERATION
    """Sampler of pictures from prompts."""
    editing: Sampler = _EDITING
    """Sampler of edits."""


@dataclass(frozen=True)
class Compute:
    """How layers are computed; none of it changes what is learnt."""

    compile: bool = False
    """Compile layers by torch.compile, except in decoding."""
    checkpointing: bool = False
    """Recompute layers in the backward pass, for memory."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights as loaded (mixed precision is the trainer's `precision`)."""

    def load(self, folder: str) -> Bagel:
        """The model of a checkpoint folder, set up like this."""
        model = Bagel.from_pretrained(folder, getattr(torch, self.dtype))
        model.compiled, model.checkpointing = self.compile, self.checkpointing
        return model.train()


def frozen_names(module: nn.Module) -> set[str]:
    """Names in the state dict that training cannot change: parameters without gradient, and position tables."""
    names = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    for path, part in module.named_modules():
        if isinstance(part, PositionTable):
            names |= {f"{path}.{name}" for name, _ in part.named_buffers()}
    return names


LearnsFrom = Literal["text", "image", "picture"]
"""Parts of a document that something is learnt from: texts or pictures with loss, or any picture."""


class Stage(PartialCheckpoint):
    """A training stage: counts its updates, and keeps what is frozen out of its checkpoints.

    student_step: updates of the trained network so far, the x-axis of all curves. learns_from: documents with none of
    these are left out of its batches; None: it takes all.
    """

    learns_from: tuple[LearnsFrom, ...] | None = None
    student_step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("student_step", torch.zeros((), dtype=torch.long))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, and count it."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.student_step += 1

    def leave_out_frozen_parts(self) -> None:
        """Keep everything that does not train out of checkpoints; to be called when that is settled."""
        for name in frozen_names(self):
            self.leave_out(name)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note over which frozen weights the others were trained."""
        checkpoint[FINGERPRINT] = self._frozen_fingerprint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError when the frozen parts are others than those of the run that wrote the checkpoint."""
        if checkpoint.get(FINGERPRINT) != self._frozen_fingerprint():
            raise ValueError(
                "the checkpoint was trained over other frozen weights than this stage has; start from the same model "
                "folder and train the same parts as the run that wrote it"
            )

    def _frozen_fingerprint(self) -> str:
        frozen = frozen_names(self)
        tensors = (*self.named_parameters(), *self.named_buffers())
        return digest((name, value) for name, value in tensors if name in frozen)
