"""From documents to what distillation runs on: contexts, token grids, targets, guidance inputs, trajectories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from hyperbagel.bagel.branch import GenerationBranch, GuidanceScales
from hyperbagel.bagel.context import GuidedContext
from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, DocumentBatch, ImageSegment, LatentSegment, Segment, ViTSegment
from hyperbagel.bagel.vision import patchify
from hyperbagel.flow.guidance import Guidance, GuidedPass
from hyperbagel.flow.noise import SharedNoise
from hyperbagel.flow.schedule import euler_step
from hyperbagel.losses.term import Step

Velocity = Callable[[Tensor, Tensor], Tensor]
"""What a network says of one batch: x_t (B, n, C) and t (B,) -> the velocity (B, n, C)."""


@dataclass(frozen=True)
class PreparedBatch:
    """A batch whose contexts are prefilled. B documents, each with one image of up to n tokens to be generated.

    has_image: (B,) bool, whether the document holds a source image, i.e. is an edit; targets: the images, (3, H, W)
    each.
    """

    batch: DocumentBatch
    contexts: GuidedContext
    grid: LatentGrid
    has_image: Tensor
    targets: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.batch)

    def scales(self, text: Tensor, image: Tensor) -> GuidanceScales:
        """Guidance inputs of the batch, each (B,): the image scale is 0 (left out) for documents without a source
        image.
        """
        device = self.has_image.device
        return GuidanceScales(text.to(device), image.to(device) * self.has_image)


def split_document(document: Document) -> tuple[list[Segment], Tensor] | None:
    """What stands before the last image to be generated, and that image's pixels; None if there is none.

    Earlier turns' noisy images leave the context, as their clean copies stand behind them.
    """
    last = max((i for i, s in enumerate(document) if isinstance(s, ImageSegment) and s.loss), default=None)
    if last is None:
        return None
    target = document[last]
    assert isinstance(target, ImageSegment)
    context = [s for s in document[:last] if not (isinstance(s, ImageSegment | LatentSegment) and s.loss)]
    return context, target.pixels


@torch.no_grad()
def prepare(model: Bagel, batch: DocumentBatch, *, variants: bool) -> PreparedBatch:
    """Prefill a batch on the original weights. variants: with the contexts that guidance passes need.

    Raises ValueError naming the documents that have no image to generate.
    """
    parts = [split_document(document) for document in batch.documents]
    split = [part for part in parts if part is not None]
    if len(split) < len(parts):
        missing = [key for key, part in zip(batch.keys, parts, strict=True) if part is None]
        raise ValueError(
            f"source {batch.source!r}: {', '.join(missing[:5])} hold no image to be generated, which "
            "distillation needs; train on sources of generation and editing documents only"
        )
    contexts = [context for context, _ in split]
    targets = tuple(pixels for _, pixels in split)
    edits = [any(isinstance(s, ImageSegment | LatentSegment | ViTSegment) for s in context) for context in contexts]
    return PreparedBatch(
        batch=batch,
        contexts=model.prefill_guided(contexts, text=variants, image=variants and any(edits)),
        grid=model.latent_grid([(t.shape[1], t.shape[2]) for t in targets]),
        has_image=torch.tensor(edits, device=model.device),
        targets=targets,
    )


@torch.no_grad()
def target_tokens(model: Bagel, prepared: PreparedBatch) -> Tensor:
    """The images to be generated as clean latent tokens (B, n, C), zero at padding."""
    patch = model.config.latent_patch_size
    tokens = [patchify(latent, patch) for latent in model.encode(prepared.targets)]
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)


def branch_velocity(
    model: Bagel, prepared: PreparedBatch | Step, branch: GenerationBranch, scales: GuidanceScales | None
) -> Velocity:
    """One pass of a branch over a batch, or that of a loss term's step; scales are left out where it takes none.

    With gradients where enabled.
    """
    scales = scales if branch.guided else None

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return model.velocity(x_t, t, prepared.contexts.full, prepared.grid, branch, scales)

    return velocity


def trajectory(velocity: Velocity, noise: Tensor, grid_t: Tensor) -> Tensor:
    """The Euler trajectory of a velocity: (steps + 1, B, n, C) float32, from the noise (B, n, C) to x_0.

    What `Sampler` computes, with other guidance inputs for each image, and with gradients where they are enabled.
    grid_t: (steps + 1,), falling from 1 to 0.
    """
    x = noise.float()
    states = [x]
    for t, s in pairwise(grid_t):
        x = euler_step(x, velocity(x, t.expand(len(x))).float(), t, s)
        states.append(x)
    return torch.stack(states)


@torch.no_grad()
def paired_x0(
    velocity: Velocity, noise: Tensor, grid: LatentGrid, grid_t: Tensor, shared_noise: SharedNoise | None = None
) -> Tensor:
    """The x_0 (B, n, C) at which a trajectory arrives from x_T (B, n, C), or from what `shared_noise` leaves of it."""
    start = noise if shared_noise is None else shared_noise(noise, grid.sizes)
    return trajectory(velocity, start, grid_t.to(noise.device))[-1]


@dataclass(frozen=True)
class Teacher:
    """The velocity that distillation aims at.

    branch: a CFG-distilled branch, which takes the scales as inputs and one pass; None: the model's original branch
    with classifier-free guidance, all variants in one batched pass. generation, editing: the guidance of either kind,
    whose scales are replaced by those of each image.
    """

    branch: GenerationBranch | None
    generation: Guidance
    editing: Guidance

    @property
    def needs_variants(self) -> bool:
        """Whether contexts must be prefilled with guidance variants."""
        return self.branch is None

    def bind(self, model: Bagel, prepared: PreparedBatch, scales: GuidanceScales) -> BoundTeacher:
        """The teacher over one batch; stacks the variants' contexts once for all calls."""
        return BoundTeacher(self, model, prepared, scales)


@dataclass(frozen=True)
class BoundTeacher:
    """A teacher with everything that stays the same within one batch."""

    teacher: Teacher
    model: Bagel
    prepared: PreparedBatch
    scales: GuidanceScales

    @cached_property
    def _guidance(self) -> Guidance:
        editing = bool(self.prepared.has_image.any())
        guidance = self.teacher.editing if editing else self.teacher.generation
        # Any scales above 1: they only say which passes are needed, the real ones are given for each image.
        return replace(guidance, text_scale=2.0, image_scale=2.0 if editing else 1.0)

    @cached_property
    def _pass(self) -> GuidedPass:
        return GuidedPass.of(self.prepared.contexts, self.prepared.grid, self._guidance)

    @torch.no_grad()
    def velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Guided velocity (B, n, C) of x_t (B, n, C) at t (B,)."""
        branch = self.teacher.branch
        if branch is None:
            return self.guided(x_t, t, self.model.generation)
        return branch_velocity(self.model, self.prepared, branch, self.scales)(x_t, t)

    def guided(self, x_t: Tensor, t: Tensor, branch: GenerationBranch) -> Tensor:
        """The same by classifier-free guidance of a branch that takes no scales; unguided where t is outside the
        guidance interval. Gradients reach the branch."""
        low, high = self._guidance.interval
        active = (t > low) & (t <= high)
        text = torch.where(active, self.scales.text, torch.ones_like(self.scales.text))
        return self._pass.velocity(self.model, x_t, t, self._guidance, (text, self.scales.image), branch)
