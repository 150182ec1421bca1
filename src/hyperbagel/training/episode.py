"""`Episode`: a batch in flight, with what all networks of an update run against; and the teacher over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from torch import Tensor

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE, Conditions, GenerationBranch, conditions_of
from hyperbagel.bagel.context import GuidedContext
from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, DocumentBatch, ImageSegment, LatentSegment, Segment, holds_image
from hyperbagel.bagel.vision import patches_of
from hyperbagel.critics.latent import JudgedBatch
from hyperbagel.flow.guidance import Guidance, GuidedPass
from hyperbagel.flow.randomness import normal, uniform
from hyperbagel.flow.trajectory import Velocity, branch_velocity
from hyperbagel.losses.base import Step


@dataclass(frozen=True, kw_only=True)
class Episode:
    """A batch of B documents, each with one image of up to n tokens to be generated, whose contexts are prefilled.

    variants: whether with those of guidance; noise: (B, n, C) standard normal latent tokens; conditions: drawn for each
    image; generator: of all further draws of the update; student, student_step: what trains, and its updates so far.
    readers: branches that go on what they have read of source pictures themselves, where others go on `contexts`.

    Examples:
        >>> t = torch.full((len(episode),), 0.5)
        >>> episode.velocity(episode.student)(episode.noise, t).shape == episode.noise.shape
        True
    """

    model: Bagel
    batch: DocumentBatch
    contexts: GuidedContext
    variants: bool
    grid: LatentGrid
    noise: Tensor
    conditions: Conditions
    generator: torch.Generator
    student: GenerationBranch
    student_step: int
    readers: tuple[GenerationBranch, ...] = ()

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def has_image(self) -> Tensor:
        """(B,) bool, whether a document holds a source image, i.e. is an edit."""
        return self.contexts.has_image

    @cached_property
    def edits(self) -> bool:
        """Whether any document holds a source image, told without asking the device."""
        return any(holds_image(context_of(document)) for document in self.batch.documents)

    @property
    def judged(self) -> JudgedBatch:
        """What a latent critic judges in."""
        return JudgedBatch(self.contexts.full, self.grid, self.conditions)

    @cached_property
    def x_0(self) -> Tensor:
        """The images to be generated as latent tokens (B, n, C) in float32 (posterior mean), zero at padding."""
        with torch.no_grad():
            pictures = [target_of(document) for document in self.batch.documents]
            latents = self.model.latents([picture for picture in pictures if picture is not None])
        return patches_of(latents, self.model.config.latent_patch_size).float()

    def velocity(self, branch: GenerationBranch) -> Velocity:
        """One pass of a branch over the batch, with gradients where they are enabled.

        One of `readers` reads the batch when the velocity is first asked for, and once more where gradients are, which
        then go through the reading too.
        """
        if not any(branch is reader for reader in self.readers) or not self.edits:
            return branch_velocity(self.model, self.contexts, self.grid, branch, self.conditions)

        @cache
        def bound(learns: bool) -> Velocity:
            episode = self.read_by(branch)
            return branch_velocity(self.model, episode.contexts, self.grid, branch, self.conditions)

        def velocity(x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
            return bound(torch.is_grad_enabled())(x_t, t, s)

        return velocity

    def uniform(self, limits: tuple[float, float] = (0.0, 1.0)) -> Tensor:
        """(B,) uniform draws."""
        return uniform(len(self), limits, self.generator).to(self.noise.device)

    def other_noise(self) -> Tensor:
        """Standard normal latent tokens (B, n, C), others than `noise`."""
        return normal(self.noise.shape, self.generator).to(self.noise.device)

    def read_by(self, branch: GenerationBranch) -> Episode:
        """The same with contexts that another branch has read, which matters where they hold images.

        With gradients where they are enabled.
        """
        clean = torch.zeros(len(self), device=self.noise.device)
        conditions = conditions_of(branch, self.conditions, clean)
        contexts = read(self.model, self.batch.documents, variants=self.variants, branch=branch, conditions=conditions)
        return replace(self, contexts=contexts)

    def step(
        self,
        *,
        x_t: Tensor,
        t: Tensor,
        velocity: Tensor,
        target_velocity: Tensor | None = None,
        target_x0: Tensor | None = None,
        x0: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Step:
        """What loss terms read of an update, see `Step`."""
        return Step(
            model=self.model,
            batch=self.batch,
            contexts=self.contexts,
            grid=self.grid,
            student_step=self.student_step,
            conditions=self.conditions,
            student=self.velocity(self.student),
            x_t=x_t,
            t=t,
            velocity=velocity,
            target_velocity=target_velocity,
            target_x0=target_x0,
            x0=x0,
            kept=kept,
        )


def context_of(document: Document) -> list[Segment]:
    """What stands before the last image to be generated.

    Earlier turns' noisy images leave the context, as their clean copies stand behind them.
    """
    last = _last_target(document)
    return [s for s in document[:last] if not (isinstance(s, ImageSegment | LatentSegment) and s.loss)]


def target_of(document: Document) -> ImageSegment | None:
    """The last image to be generated; None if there is none."""
    target = None if (last := _last_target(document)) is None else document[last]
    return target if isinstance(target, ImageSegment) else None


def _last_target(document: Document) -> int | None:
    return max((i for i, s in enumerate(document) if isinstance(s, ImageSegment) and s.loss), default=None)


def target_sizes(batch: DocumentBatch) -> list[tuple[int, int]]:
    """Height and width in pixels of each image to be generated.

    Raises ValueError naming the documents that have no such image.
    """
    targets = [target_of(document) for document in batch.documents]
    if missing := [key for key, target in zip(batch.keys, targets, strict=True) if target is None]:
        raise ValueError(
            f"source {batch.source!r}: {', '.join(missing[:5])} hold no image to be generated, which "
            "distillation needs; train on sources of generation and editing documents only"
        )
    return [(target.pixels.shape[1], target.pixels.shape[2]) for target in targets if target is not None]


def read(
    model: Bagel,
    documents: Sequence[Document],
    *,
    variants: bool,
    branch: GenerationBranch | None = None,
    conditions: Conditions | None = None,
) -> GuidedContext:
    """Prefill documents, with gradients where they are enabled.

    variants: with the contexts that guidance passes need; branch: what reads clean latents, the original by default;
    conditions: those that it takes.
    """
    contexts = [context_of(document) for document in documents]
    image = variants and any(holds_image(context) for context in contexts)
    return model.prefill_guided(contexts, text=variants, image=image, branch=branch, conditions=conditions)


@dataclass(frozen=True)
class Teacher:
    """The velocity that distillation aims at.

    branch: a CFG-distilled branch, which takes the scales as conditions and one pass; None: the model's original branch
    with classifier-free guidance, all variants in one batched pass. generation, editing: the guidance of either kind,
    whose scales are replaced by those of each image.

    Examples:
        >>> from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION
        >>> teacher = Teacher(None, PAPER_GENERATION, PAPER_EDITING)  # the model's own branch, guided
        >>> t = torch.full((len(episode),), 0.5)
        >>> teacher.over(episode).velocity(episode.noise, t).shape == episode.noise.shape
        True
    """

    branch: GenerationBranch | None
    generation: Guidance
    editing: Guidance

    @property
    def needs_variants(self) -> bool:
        """Whether contexts must be prefilled with guidance variants."""
        return self.branch is None

    def over(self, episode: Episode) -> BoundTeacher:
        """The teacher over one batch; stacks the variants' contexts once for all calls."""
        return BoundTeacher(self, episode)


@dataclass(frozen=True)
class BoundTeacher:
    """A teacher with everything that stays the same within one batch."""

    teacher: Teacher
    episode: Episode

    @cached_property
    def _guidance(self) -> Guidance:
        editing = self.episode.edits
        guidance = self.teacher.editing if editing else self.teacher.generation
        # Any scales above 1: they only say which passes are needed, the real ones are given for each image.
        return replace(guidance, text_scale=2.0, image_scale=2.0 if editing else 1.0)

    @cached_property
    def _pass(self) -> GuidedPass:
        return GuidedPass.of(self.episode.contexts, self.episode.grid, self._guidance)

    @torch.no_grad()
    def velocity(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        """Guided velocity (B, n, C) of x_t (B, n, C) at t (B,)."""
        branch = self.teacher.branch
        if branch is None:
            return self.guided(self.episode.model.generation)(x_t, t)
        return self.episode.velocity(branch)(x_t, t, s)

    def guided(self, branch: GenerationBranch) -> Velocity:
        """The same by classifier-free guidance of a branch that takes no scales; unguided where t is outside the
        guidance interval. Gradients reach the branch."""
        low, high = self._guidance.interval
        scales = self.episode.conditions

        def velocity(x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
            active = (t > low) & (t <= high)
            text = torch.where(active, scales[TEXT_SCALE], torch.ones_like(t))
            given = (text, scales[IMAGE_SCALE])
            return self._pass.velocity(self.episode.model, x_t, t, self._guidance, given, branch)

        return velocity
