"""What distillation stages share: the frozen model, contexts, noise, checkpoints, export of the branch.

The order of a training step is each stage's own.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbagel.bagel.branch import GenerationBranch, GuidanceScales
from hyperbagel.bagel.branch_checkpoint import BranchInfo, base_hash, context_hash, load_branch, save_branch
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION, Guidance
from hyperbagel.flow.sampler import Sampler
from hyperbagel.flow.schedule import timesteps
from hyperbagel.losses.term import LossTerm, Step
from hyperbagel.modules.batches import PreparedBatch, Teacher, prepare
from hyperbagel.modules.networks import Training, merged, trainable_branch
from hyperbagel.modules.optimization import ManualOptimization
from hyperbagel.modules.randomness import step_generator
from hyperbagel.modules.sharding import gathered, shard
from hyperbagel.modules.stage import Compute, LearnsFrom

_COMPUTE = Compute()


@dataclass(frozen=True)
class StageSettings:
    """What all stages have in common."""

    steps: int = 6
    """Steps of the sampler that the student is made for."""
    shift: float = 3.0
    """Timestep shift of the sampler that the student is made for."""
    text_scale: tuple[float, float] = (1.0, 5.0)
    """Range of the student's guidance input for the text."""
    image_scale: tuple[float, float] = (1.0, 2.5)
    """Range of the student's guidance input for the source picture."""
    generation: Guidance = PAPER_GENERATION
    """How the teacher is guided in generation, and the scales of evaluation."""
    editing: Guidance = PAPER_EDITING
    """How the teacher is guided in editing, and the scales of evaluation."""
    teacher: str | None = None
    """File of a CFG-distilled branch to aim at, which costs one pass where the guided original (None) costs two or
    three."""
    max_updates: int | None = None
    """Student updates after which training stops; None: as long as the trainer says."""
    export: str | None = None
    """File that the branch is written to when training ends; None: `branch.safetensors` in the run's folder."""
    compute: Compute = _COMPUTE
    """How layers are computed."""
    seed: int = 0
    """Seed of noise and times."""


class DistillationStage(ManualOptimization):
    """Base of the five stages: a student branch over a frozen model.

    Evaluation reads `model`, `branch` (what is evaluated and exported), `sampler` and `editing_sampler`; `student_step`
    counts student updates and is the x-axis of everything that is logged.

    takes_scales: whether the student takes guidance scales as inputs.

    Args:
        model: folder of the original model.
        init_from: branch file of the stage before; None starts from the original branch.
        student: how the student is trained.
        settings: what all stages have in common.
    """

    takes_scales = True
    learns_from: tuple[LearnsFrom, ...] | None = ("image",)

    def __init__(self, model: str, init_from: str | None, student: Training, settings: StageSettings) -> None:
        super().__init__(settings.max_updates)
        self.settings = settings
        self.folder, self._init_from = model, init_from
        self._sharded = False
        self.model = settings.compute.load(model).requires_grad_(False)
        self.base, self.context = base_hash(self.model), context_hash(self.model)
        self.leave_out("model")
        self.teacher_branch: GenerationBranch | None = None
        if settings.teacher is not None:
            self.teacher_branch = load_branch(settings.teacher, self.model)[0].requires_grad_(False)
            self.leave_out("teacher_branch")
        self.student = trainable_branch(self.initial_branch(), student, guided=self.takes_scales)
        self.add_network("student", student)

    def configure_model(self) -> None:
        """Under ModelParallelStrategy, shard the understanding layers and every network."""
        if self.device_mesh is not None and not self._sharded:
            plugin = self.trainer.precision_plugin
            gathered_dtype = torch.bfloat16 if plugin.precision == "bf16-mixed" else None
            shard(self, self.device_mesh["data_parallel"], gathered_dtype)
            self._sharded = True

    # What evaluation and callbacks use

    @property
    def branch(self) -> GenerationBranch:
        """The branch to be evaluated and exported."""
        return self.student

    @property
    def nfe(self) -> int:
        """Evaluations an image that the branch is made for."""
        return self.settings.steps

    @property
    def sampler(self) -> Sampler:
        """How `branch` makes pictures from text."""
        return Sampler(self.settings.steps, self.settings.shift, self.settings.generation)

    @property
    def editing_sampler(self) -> Sampler:
        """How `branch` edits pictures."""
        return Sampler(self.settings.steps, self.settings.shift, self.settings.editing)

    @property
    def grid_t(self) -> Tensor:
        """The times of the student's sampler, (steps + 1,), falling from 1 to 0."""
        return timesteps(self.settings.steps, self.settings.shift).to(self.device)

    def add_loss(self, term: LossTerm) -> None:
        """Add a loss term, before optimizers are built. Raises ValueError for a taken name or a missing critic."""
        super().add_loss(term)
        term.attach(self.model, self.folder)

    def export_branch(self, path: str | Path, branch: GenerationBranch | None = None) -> None:
        """Write a branch (default: `branch`) with its provenance; adapters are merged into its weights.

        All processes must call it, since sharded weights are gathered; the first one writes.
        """
        settings = self.settings
        info = BranchInfo(
            stage=type(self).__name__,
            nfe=self.nfe,
            base=self.base,
            shift=settings.shift,
            text_scale=settings.text_scale,
            image_scale=settings.image_scale,
            context=self.context,
        )
        whole = gathered(branch or self.branch, self.model.config)
        if self.global_rank == 0:
            save_branch(merged(whole), info, path)

    def on_train_end(self) -> None:
        """Write the branch, averaged where a callback keeps an average (`averaged`)."""
        path = Path(self.settings.export or self.run_folder() / "branch.safetensors")
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if callable(averaged := getattr(callback, "averaged", None)):
                    stack.enter_context(averaged(self))
            self.export_branch(path)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which model the checkpoint belongs to."""
        checkpoint["base"], checkpoint["context"] = self.base, self.context

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError for a checkpoint of a stage over another model."""
        theirs = checkpoint.get("base"), checkpoint.get("context", self.context)  # older ones have no context
        if theirs != (self.base, self.context):
            raise ValueError(
                f"the checkpoint was trained over another model (fingerprints {theirs[0]} and {theirs[1]}, this model "
                f"has {self.base} and {self.context}): set `model` to the folder that the run started with"
            )

    # What training steps are made of

    def initial_branch(self, file: str | None = None) -> GenerationBranch:
        """The frozen branch that the student starts as, or another file's, read anew; the original is not copied."""
        file = file or self._init_from
        branch = self.model.generation if file is None else load_branch(file, self.model)[0]
        return branch.requires_grad_(False)

    def branch_like_teacher(self, training: Training, file: str | None = None) -> GenerationBranch:
        """A branch to be trained that starts as the teacher, or as a file: a critic's backbone, the fake branch."""
        if file is not None:
            return trainable_branch(load_branch(file, self.model)[0], training)
        return trainable_branch(self.teacher_branch or self.model.generation, training)

    @property
    def teacher(self) -> Teacher:
        """What the student is taught by: `settings.teacher`, or the guided original."""
        return Teacher(self.teacher_branch, self.settings.generation, self.settings.editing)

    def begin(self, batch: DocumentBatch, *, teacher: bool = True) -> tuple[PreparedBatch, torch.Generator]:
        """The batch with its prefilled contexts, and the generator of all this step's draws.

        teacher: whether the step asks the teacher, which may need contexts of guidance variants.
        """
        generator = step_generator(self.settings.seed, self.global_rank, int(self.batches_seen))
        self.batches_seen += 1
        with self.timed("prefill"):
            return prepare(self.model, batch, variants=teacher and self.teacher.needs_variants), generator

    def draw_noise(self, prepared: PreparedBatch, generator: torch.Generator) -> Tensor:
        """Standard normal latent tokens (B, n, C)."""
        shape = (*prepared.grid.position_ids.shape, self.model.config.latent_token_dim)
        return torch.randn(shape, generator=generator).to(self.device)

    def draw_scales(self, prepared: PreparedBatch, generator: torch.Generator) -> GuidanceScales:
        """Uniform guidance scales of each image."""
        u = torch.rand(2, len(prepared), generator=generator)
        ranges = (self.settings.text_scale, self.settings.image_scale)
        text, image = (low + (high - low) * x for x, (low, high) in zip(u, ranges, strict=True))
        return prepared.scales(text, image)

    def step(self, prepared: PreparedBatch, scales: GuidanceScales | None, **values: Any) -> Step:
        """What loss terms read, of an update of a prepared batch."""
        return Step(
            model=self.model,
            batch=prepared.batch,
            contexts=prepared.contexts,
            grid=prepared.grid,
            student_step=int(self.student_step),
            scales=scales,
            **values,
        )
