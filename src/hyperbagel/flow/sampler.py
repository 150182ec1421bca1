"""Euler sampling with an exact number of steps and an exact count of network evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE, Conditions, GenerationBranch, conditions_of
from hyperbagel.bagel.checkpoint import not_finite
from hyperbagel.bagel.context import GuidedContext
from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.segments import Document, holds_image
from hyperbagel.bagel.transfer import moved
from hyperbagel.flow.guidance import Guidance, GuidedPass
from hyperbagel.flow.schedule import timesteps
from hyperbagel.flow.trajectory import Progress, trajectory

if TYPE_CHECKING:
    from hyperbagel.bagel.model import Bagel

Reader: TypeAlias = Literal["original", "student"]
"""Which branch reads source pictures: the model's own, or the distilled one, as in programs that load only one."""


@dataclass(frozen=True)
class Sample:
    """The result of sampling.

    latents: (B, n, C) float32 tokens at t = 0; nfe: evaluations of the generation network for one image;
    trajectory: (steps + 1, B, n, C), from the noise to the latents.
    """

    latents: Tensor
    nfe: int
    trajectory: Tensor


@dataclass(frozen=True)
class Sampler:
    """Euler sampler.

    A CFG-distilled branch takes the guidance scales as inputs and makes one pass per step.

    Examples:
        >>> from hyperbagel.flow.guidance import PAPER_GENERATION
        >>> sampler = Sampler(steps=4, guidance=PAPER_GENERATION)
        >>> contexts = sampler.read(model, [document])
        >>> grid = model.latent_grid([(16, 16)])
        >>> noise = torch.randn(1, grid.position_ids.shape[1], model.config.latent_token_dim)
        >>> sampler.sample(model, contexts, grid, noise).nfe  # two passes per step
        8
    """

    steps: int = 50
    """True steps."""
    shift: float = 3.0
    """Timestep shift."""
    guidance: Guidance | None = None
    """Classifier-free guidance, None for one pass per step."""
    context: Reader = "original"
    """Which branch reads source pictures: the original, or the student that denoises, at the same scales."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.shift < math.inf:
            raise ValueError(f"sampling needs steps >= 1 and shift > 0, got steps {self.steps}, shift {self.shift}")

    def read(
        self, model: Bagel, documents: Sequence[Document], branch: GenerationBranch | None = None
    ) -> GuidedContext:
        """The contexts that `sample` needs of documents. branch: what will denoise, the original by default."""
        guided = (branch or model.generation).guided
        # A CFG-distilled branch makes one pass per step, without guidance variants.
        guidance = None if guided else self.guidance
        held = [holds_image(document) for document in documents]
        conditions: Conditions | None = None
        reader = branch if self.context == "student" and any(held) else None
        if reader is not None:
            images = moved(torch.tensor(held, dtype=torch.float32), model.device)
            scales = _scales(self.guidance, images) if guided else {}
            conditions = conditions_of(reader, scales, torch.zeros_like(images))
        return model.prefill_guided(
            documents,
            text=guidance is not None and guidance.text_scale > 1,
            image=guidance is not None and guidance.uses_image and any(held),
            branch=reader,
            conditions=conditions,
        )

    def sample(
        self,
        model: Bagel,
        contexts: GuidedContext,
        grid: LatentGrid,
        noise: Tensor,
        branch: GenerationBranch | None = None,
        progress: Progress | None = None,
    ) -> Sample:
        """Denoise; differentiable, so call it without gradients where none are wanted.

        noise: (B, n, C) standard normal tokens; branch: default the original one; progress: called after each step with
        (done, steps). The state stays in float32. Raises ValueError for impossible settings, NotFiniteError for latents
        that are no numbers.
        """
        times = timesteps(self.steps, self.shift)
        velocity = _Evaluated(self, model, contexts, grid, branch or model.generation)
        velocity.times = iter(times.tolist())
        states = trajectory(velocity, noise, moved(times, noise.device), progress)
        self._check(states, grid, model, branch)
        return Sample(states[-1], velocity.nfe, states)

    def _check(self, states: Tensor, grid: LatentGrid, model: Bagel, branch: GenerationBranch | None) -> None:
        """Looks at the end, so that no step waits for it, and back only if it has to."""

        def bad(x: Tensor) -> bool:
            wrong = ~x.isfinite() if grid.valid is None else ~x.isfinite() & grid.valid[..., None]
            return bool(wrong.any())

        if bad(states[-1]):
            step = next(i for i, x in enumerate(states) if bad(x))
            raise not_finite(f"latents after step {step} of {self.steps}", model, branch)


class _Evaluated:
    """The velocity of a branch under a sampler's guidance, which counts its evaluations.

    times: those that it will be asked for, in order, as numbers: to look at one on the device would wait for it.
    """

    times: Iterator[float]

    def __init__(
        self, sampler: Sampler, model: Bagel, contexts: GuidedContext, grid: LatentGrid, branch: GenerationBranch
    ) -> None:
        self.model, self.contexts, self.grid, self.branch = model, contexts, grid, branch
        self.scales = _scales(sampler.guidance, contexts.has_image.float()) if branch.guided else {}
        self.guidance = None if branch.guided else sampler.guidance
        self.guided = None if self.guidance is None else GuidedPass.of(contexts, grid, self.guidance)
        self.nfe = 0

    def __call__(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        time = next(self.times)
        if self.guided is not None and self.guidance is not None and self.guidance.active(time):
            self.nfe += self.guided.variants
            return self.guided.velocity(self.model, x_t, t, self.guidance, branch=self.branch)
        self.nfe += 1
        conditions = conditions_of(self.branch, self.scales, t, s)
        return self.model.velocity(x_t, t, self.contexts.full, self.grid, self.branch, conditions)


def _scales(guidance: Guidance | None, has_image: Tensor) -> Conditions:
    """Guidance as conditions of a CFG-distilled branch; the image scale only where has_image (B,) is 1, and not 0."""
    if guidance is None:
        raise ValueError("a CFG-distilled branch takes guidance scales as inputs: give the sampler a Guidance")
    image = guidance.image_scale if guidance.uses_image else 0.0
    return {TEXT_SCALE: torch.full_like(has_image, guidance.text_scale), IMAGE_SCALE: image * has_image}
