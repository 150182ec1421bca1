"""The trunk of all stages: a model, a student that trains, what evaluation asks for, and what checkpoints hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import nn

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.embeddings import PositionTable
from hyperbagel.bagel.fingerprint import digest
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.draft.head import DraftHead
from hyperbagel.flow.guidance import EDITING, GENERATION
from hyperbagel.flow.sampler import Sampler
from hyperbagel.pipeline.painter import Painter
from hyperbagel.pipeline.predictions import PredictionSettings, Predictor
from hyperbagel.training.averages import averaged_weights
from hyperbagel.training.memory import DocumentCost
from hyperbagel.training.optimization import Optimization

FINGERPRINT = "frozen_fingerprint"
_MULTIPLE = 16

LearnsFrom = Literal["text", "image", "picture"]
"""Parts of a document that something is learnt from: texts or pictures with loss, or any picture."""


@dataclass(frozen=True)
class Samplers:
    """How a stage draws pictures when it is evaluated."""

    generation: Sampler = Sampler(guidance=GENERATION)
    """Sampler of pictures from prompts."""
    editing: Sampler = Sampler(guidance=EDITING)
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
    multiple: int | None = None
    """Documents of a training batch are padded to a multiple of this many tokens, so that layers meet few
    shapes, which are compiled or recorded once; None: 16 on GPUs, and 1 (no such padding) elsewhere."""
    graphs: bool = False
    """Compile all layers at once, each shape by itself, and have a GPU record and replay them as CUDA graphs. It pays
    where batches are small, as launching their many small operations takes longer than computing them."""

    def __post_init__(self) -> None:
        if self.multiple is not None and self.multiple < 1:
            raise ValueError(f"compute.multiple is {self.multiple}: give 1 (no padding) or more, or null")

    def load(self, folder: str) -> Bagel:
        """The model of a checkpoint folder, set up like this."""
        model = Bagel.from_pretrained(folder, getattr(torch, self.dtype))
        model.compiled = "all layers" if self.graphs else "any" if self.compile else None
        model.checkpointing = self.checkpointing
        return model.train()

    def multiple_on(self, device: torch.device) -> int:
        """What lengths are a multiple of on a device."""
        return self.multiple or (_MULTIPLE if device.type == "cuda" else 1)


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """What all stages have in common.

    Examples:
        >>> from hyperbagel.training.stage import Compute
        >>> StageSettings(max_updates=100, compute=Compute(dtype="bfloat16")).seed
        0
    """

    max_updates: int | None = None
    """Student updates after which training stops; None: as long as the trainer says."""
    samplers: Samplers = Samplers()
    """How pictures are drawn for evaluation; stages that train for a certain sampler have their own."""
    compute: Compute = Compute()
    """How layers are computed."""
    seed: int = 0
    """Seed of noise, times and fresh weights."""
    predictions: PredictionSettings = PredictionSettings()
    """What `predict` writes, and where."""


class Stage(Optimization):
    """Base of all training stages.

    Evaluation reads `model`, `branch` (what draws; None: the model's own), `sampler` and `editing_sampler`.

    learns_from: documents with none of these are left out of training batches; None: it takes all. draws: whether
    pictures of it can be evaluated.

    Args:
        model: folder of the model.
        settings: what all stages have in common.

    Examples:
        >>> from hyperbagel.modules import Pretraining
        >>> stage = Pretraining(model=folder)
        >>> stage.sampler.steps, stage.branch is None, int(stage.student_step)
        (50, True, 0)
    """

    learns_from: tuple[LearnsFrom, ...] | None = None
    draws = True

    def __init__(self, model: str, settings: StageSettings) -> None:
        super().__init__(settings.max_updates)
        self.folder, self.settings = model, settings
        self.model = settings.compute.load(model)

    @property
    def branch(self) -> GenerationBranch | None:
        """The branch to be evaluated, None for the model's own."""
        return None

    @property
    def sampler(self) -> Sampler:
        """How pictures are made from text."""
        return self.settings.samplers.generation

    @property
    def editing_sampler(self) -> Sampler:
        """How pictures are edited."""
        return self.settings.samplers.editing

    @property
    def draft_head(self) -> DraftHead | None:
        """What speeds answers up when they are predicted, if the stage has a draft head."""
        return None

    @cached_property
    def predictor(self) -> Predictor:
        """Draws, edits and answers as evaluation does; ranks agree on its folder, so all of them have to ask."""
        settings = self.settings.predictions
        folder = self.run_folder() / "predictions" if settings.folder is None else Path(settings.folder)
        tokenizer = Tokenizer.from_pretrained(self.folder)
        samplers = (self.sampler, self.editing_sampler)
        generation, editing = (Painter(self.model, tokenizer, sampler, self.branch) for sampler in samplers)
        return Predictor(self.model, tokenizer, generation, editing, folder, settings, self.draft_head)

    def predict_step(self, batch: Any, batch_idx: int) -> list[str]:
        """Draw, edit or answer what each document ends with, with averaged weights where a callback keeps an average.

        Returns the JSON files of the documents. Raises ValueError for batches of other things than documents.
        """
        if not isinstance(batch, DocumentBatch):
            raise ValueError(
                f"predict draws and answers documents, not a {type(batch).__name__}: use a data module of them"
            )
        with averaged_weights(self.trainer, self):
            return self.predictor.write(batch)

    def on_fit_start(self) -> None:
        """Pad as the device likes it. Raises ValueError for graphs with accumulated gradients, which would not outlive
        the next recording."""
        compute = self.settings.compute
        self.model.multiple = compute.multiple_on(self.device)
        if compute.graphs and any(training.accumulate > 1 for training in self.networks.values()):
            raise ValueError("settings.compute.graphs needs networks with accumulate: 1; give larger batches instead")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """What was recorded for the last batch may be overwritten."""
        super().on_train_batch_start(batch, batch_idx)
        if self.settings.compute.graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def memory(self, cost: DocumentCost) -> dict[str, int]:
        """Bytes for each document of a training batch, by part: activations of the graphs that exist at once, and
        key-value caches."""
        return {"activations": cost.whole_forward}

    def run_folder(self) -> Path:
        """Where this run's files go; ranks agree on it, so all of them have to ask."""
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

    def leave_out_frozen_parts(self) -> None:
        """Keep everything that does not train out of checkpoints; to be called when that is settled."""
        for name in frozen_names(self):
            self.leave_out(name)

    def fingerprint(self) -> str:
        """Of the frozen weights that the others are trained over."""
        frozen = frozen_names(self)
        tensors = (*self.named_parameters(), *self.named_buffers())
        return digest((name, value) for name, value in tensors if name in frozen)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note over which frozen weights the others were trained."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[FINGERPRINT] = self.fingerprint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError when the frozen parts are others than those of the run that wrote the checkpoint."""
        if (theirs := checkpoint.get(FINGERPRINT)) != (own := self.fingerprint()):
            raise ValueError(
                f"the checkpoint was trained over other frozen weights (fingerprint {theirs}, this stage has {own}): "
                "set `model` to the folder that the run started with, and train the same parts"
            )
        super().on_load_checkpoint(checkpoint)


def frozen_names(module: nn.Module) -> set[str]:
    """Names in the state dict that training cannot change: parameters without gradient, and position tables."""
    names = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    for path, part in module.named_modules():
        if isinstance(part, PositionTable):
            names |= {f"{path}.{name}" for name, _ in part.named_buffers()}
    return names


def student_updates(module: LightningModule) -> int:
    """Updates of the student so far, which is what results are logged against; of other modules the trainer's steps."""
    step = getattr(module, "student_step", None)
    return int(module.global_step if step is None else step)


def evaluated(stage: object, by: str) -> Stage:
    """The stage as evaluating callbacks see it; by: who asks. Raises ValueError for one that does not draw."""
    if not isinstance(stage, Stage) or not stage.draws:
        raise ValueError(f"{by} evaluates stages that draw, which {type(stage).__name__} does not")
    return stage
