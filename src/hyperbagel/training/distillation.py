"""The trunk of distillation stages: a student branch over a frozen model, its teacher, and the way a batch begins.

The order of a training step is each stage's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hyperbagel.bagel.adapters import save_adapters
from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE, Conditions, GenerationBranch
from hyperbagel.bagel.branch_checkpoint import (
    BranchInfo,
    base_hash,
    branch_of_folder,
    context_hash,
    load_branch,
    save_branch,
)
from hyperbagel.bagel.checkpoint import shapes_only
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.bagel.shipped import resolve
from hyperbagel.bagel.stored import holds_model
from hyperbagel.bagel.transfer import moved
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION, Guidance
from hyperbagel.flow.randomness import normal, step_generator
from hyperbagel.flow.sampler import Reader, Sampler
from hyperbagel.flow.schedule import timesteps
from hyperbagel.losses.base import LossTerm
from hyperbagel.pipeline.loading import refuse_model_folder
from hyperbagel.training.averages import averaged_weights
from hyperbagel.training.episode import Episode, Teacher, read, target_sizes
from hyperbagel.training.memory import DocumentCost
from hyperbagel.training.networks import Training, adapters_in, merged, trainable_branch
from hyperbagel.training.sharding import gathered, shard
from hyperbagel.training.stage import LearnsFrom, Stage, StageSettings

Noise = Callable[[Sequence[int], torch.Generator], Tensor]
"""Draws noise of a shape from a generator."""


@dataclass(frozen=True, kw_only=True)
class DistillationSettings(StageSettings):
    """What all distillation stages have in common.

    Examples:
        >>> DistillationSettings(max_updates=100).in_one_step().steps
        1
    """

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
    context: Reader = "original"
    """Which branch reads source pictures for the student: the original, or the student itself, which then learns that
    too, as in programs that load one branch alone (`hyperbagel export model`). Teachers and critics keep to the
    original."""
    teacher: str | None = None
    """File of a CFG-distilled branch to aim at, which costs one pass where the guided original (None) costs two or
    three."""
    export: str | None = None
    """File that the branch is written to when training ends; None: `branch.safetensors` in the run's folder."""

    def in_one_step(self) -> DistillationSettings:
        """The same for a student that samples in one step."""
        return replace(self, steps=1)


class DistillationStage(Stage):
    """Base of stages that distil: a student branch over a frozen model.

    conditions: what the student takes beside the time; asks_teacher: whether its updates ask the teacher, which may
    need contexts of guidance variants; batches_seen counts training batches.

    Args:
        model: folder of the original model.
        init_from: branch file of the stage before, or a folder of adapters or of an exported model; None starts from
            the original branch.
        student: how the student is trained.
        settings: what all distillation stages have in common.

    Examples:
        >>> class Frozen(DistillationStage):
        ...     def training_step(self, batch, batch_idx):
        ...         episode = self.begin(batch)
        ...
        >>> from hyperbagel.training.networks import Training
        >>> stage = Frozen(folder, None, Training(), DistillationSettings())
        >>> stage.student.conditions, stage.nfe
        (('text_scale', 'image_scale'), 6)
    """

    conditions: tuple[str, ...] = (TEXT_SCALE, IMAGE_SCALE)
    asks_teacher = True
    learns_from: tuple[LearnsFrom, ...] | None = ("image",)
    settings: DistillationSettings
    counters = (*Stage.counters, "batches_seen")

    def __init__(self, model: str, init_from: str | None, student: Training, settings: DistillationSettings) -> None:
        super().__init__(model, settings)
        if settings.export is not None:
            refuse_model_folder(Path(settings.export).parent)
        self._init_from = init_from
        self._lora = student.lora
        if self._lora is not None and not self._lora.merge and init_from is not None:
            raise ValueError("student.lora.merge: false exports adapters over the original, so leave init_from out")
        self._sharded = False
        self.batches_seen = 0
        self.model.requires_grad_(False)
        self.base, self.context = base_hash(self.model), context_hash(self.model)
        self.leave_out("model")
        self.teacher_branch: GenerationBranch | None = None
        if settings.teacher is not None:
            self.teacher_branch = self._read_branch(settings.teacher).requires_grad_(False)
            self.leave_out("teacher_branch")
        self.student = trainable_branch(self.initial_branch(), student, self.conditions)
        self.add_network("student", student)

    def configure_model(self) -> None:
        """Under ModelParallelStrategy, shard the understanding layers and every network.

        Raises ValueError for a student that reads source pictures, of which not every process has some.
        """
        if self.device_mesh is not None and self.settings.context == "student":
            raise ValueError(
                "settings.context is student: sharded branches must run alike in all processes, but only edits have "
                "source pictures to read; train on one GPU, or with adapters (`student.lora`)"
            )
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
        return Sampler(self.settings.steps, self.settings.shift, self.settings.generation, self.settings.context)

    @property
    def editing_sampler(self) -> Sampler:
        """How `branch` edits pictures."""
        return Sampler(self.settings.steps, self.settings.shift, self.settings.editing, self.settings.context)

    @property
    def grid_t(self) -> Tensor:
        """The times of the student's sampler, (steps + 1,), falling from 1 to 0."""
        return moved(timesteps(self.settings.steps, self.settings.shift), self.device)

    def memory(self, cost: DocumentCost) -> dict[str, int]:
        """The student's graph, and the contexts of the student and of the teacher's guidance variants."""
        caches = 1
        if self.asks_teacher and self.teacher.needs_variants:
            caches += 2 + 2 * cost.workload.editing  # without text, without picture, and the stacked variants
        read = cost.reading if self.settings.context == "student" else 0
        caches += bool(read)
        return {"activations: student": cost.graph + read, "key-value caches": caches * cost.cache}

    def add_loss(self, term: LossTerm) -> None:  # type: ignore[override]
        """Add a loss term, before optimizers are built. Raises ValueError for a taken name or a missing critic."""
        super().add_loss(term)
        term.attach(self.model, self.folder)

    def export_branch(self, path: str | Path, branch: GenerationBranch | None = None) -> None:
        """Write a branch (default: `branch`) with its provenance; adapters are merged into its weights, or go into a
        folder called as the file without its ending.

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
            reader=settings.context,
            model=Path(self.folder).name,
        )
        first = self.global_rank == 0
        whole = gathered(branch or self.branch, self.model.config, keep=first)
        if whole is None or not first:
            return
        if self._lora is not None and not self._lora.merge:
            save_adapters(*adapters_in(whole, self._lora), info, Path(path).with_suffix(""))
        else:
            save_branch(merged(whole), info, path)

    @property
    def branch_file(self) -> Path:
        """Where the branch is written when training ends; ranks agree on it, so all of them have to ask."""
        return Path(self.settings.export or self.run_folder() / "branch.safetensors")

    def on_train_end(self) -> None:
        """Write the branch, averaged where a callback keeps an average (`averaged`)."""
        path = self.branch_file
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with averaged_weights(self.trainer, self):
            self.export_branch(path)

    def fingerprint(self) -> str:
        """Of the frozen model, as its branch files have it."""
        return f"{self.base}-{self.context}"

    # What training steps are made of

    def initial_branch(self, file: str | None = None) -> GenerationBranch:
        """The frozen branch that the student starts as, or another file's, read anew; the original is not copied."""
        file = file or self._init_from
        return self._read_branch(file).requires_grad_(False)

    def _read_branch(self, file: str | None) -> GenerationBranch:
        """The branch of a file or a name; of the folder of a model over the same understanding stack, its own."""
        if file is None:
            return self.model.generation
        if holds_model(folder := resolve(file)) and not shapes_only():
            return branch_of_folder(folder, self.model)
        return load_branch(file, self.model, whole=True)[0]

    def branch_like_teacher(self, training: Training, file: str | None = None) -> GenerationBranch:
        """A branch to be trained that starts as the teacher, or as a file: a critic's backbone, the fake branch."""
        if file is not None:
            return trainable_branch(self._read_branch(file), training)
        return trainable_branch(self.teacher_branch or self.model.generation, training)

    @property
    def teacher(self) -> Teacher:
        """What the student is taught by: `settings.teacher`, or the guided original."""
        return Teacher(self.teacher_branch, self.settings.generation, self.settings.editing)

    def begin(self, batch: DocumentBatch, noise: Noise | None = None) -> Episode:
        """The batch with its prefilled contexts, its noise and its conditions. noise: what draws it, by default normal.

        Raises ValueError naming the documents that have no image to generate.
        """
        generator = step_generator(self.settings.seed, self.global_rank, self.batches_seen, device=self.device)
        self.batches_seen += 1
        variants = self.asks_teacher and self.teacher.needs_variants
        grid = self.model.latent_grid(target_sizes(batch))
        with self.timed("prefill"), torch.no_grad():
            contexts = read(self.model, batch.documents, variants=variants)
        shape = (*grid.position_ids.shape, self.model.config.latent_token_dim)
        return Episode(
            model=self.model,
            batch=batch,
            contexts=contexts,
            variants=variants,
            grid=grid,
            noise=(noise or normal)(shape, generator).to(self.device),
            conditions=self.draw_conditions(contexts.has_image, generator),
            generator=generator,
            student=self.student,
            student_step=self.student_step,
            readers=(self.student, self.branch) if self.settings.context == "student" else (),
        )

    def draw_conditions(self, has_image: Tensor, generator: torch.Generator) -> Conditions:
        """Uniform guidance scales of each image; has_image: (B,) bool, which of them are edits."""
        u = torch.rand(2, len(has_image), generator=generator, device=generator.device)
        ranges = (self.settings.text_scale, self.settings.image_scale)
        text, image = ((low + (high - low) * x).to(has_image.device) for x, (low, high) in zip(u, ranges, strict=True))
        return {TEXT_SCALE: text, IMAGE_SCALE: image * has_image}
