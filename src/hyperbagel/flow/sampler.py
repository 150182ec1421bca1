"""Euler sampling with an exact number of steps and an exact count of network evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hyperbagel.bagel.branch import GenerationBranch, GuidanceScales
from hyperbagel.bagel.checkpoint import not_finite
from hyperbagel.bagel.context import GuidedContext
from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.flow.guidance import Guidance, GuidedPass
from hyperbagel.flow.schedule import euler_step, timesteps

if TYPE_CHECKING:
    from hyperbagel.bagel.model import Bagel

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sample:
    """What sampling yields.

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
    """

    steps: int = 50
    """True steps."""
    shift: float = 3.0
    """Timestep shift."""
    guidance: Guidance | None = None
    """Classifier-free guidance, None for one pass per step."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.shift < math.inf:
            raise ValueError(f"sampling needs steps >= 1 and shift > 0, got steps {self.steps}, shift {self.shift}")

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
        grid_t = timesteps(self.steps, self.shift).to(noise.device)
        scales = self._scale_inputs(contexts, branch or model.generation, noise)
        plain = None if scales is not None else self.guidance
        guided = None if plain is None else GuidedPass.of(contexts, grid, plain)
        x, nfe, trajectory = noise.float(), 0, [noise.float()]
        for i in range(self.steps):
            t = grid_t[i].expand(len(x))
            if guided is not None and plain is not None and plain.active(float(grid_t[i])):
                v = guided.velocity(model, x, t, plain, branch=branch)
                nfe += guided.variants
            else:
                v = model.velocity(x, t, contexts.full, grid, branch, scales)
                nfe += 1
            x = euler_step(x, v.float(), grid_t[i], grid_t[i + 1])
            trajectory.append(x)
            if progress is not None:
                progress(i + 1, self.steps)
        self._check(trajectory, grid, model, branch)
        return Sample(x, nfe, torch.stack(trajectory))

    def _check(
        self, trajectory: Sequence[Tensor], grid: LatentGrid, model: Bagel, branch: GenerationBranch | None
    ) -> None:
        """Looks at the end, so that no step waits for it, and back only if it has to."""

        def bad(x: Tensor) -> bool:
            wrong = ~x.isfinite() if grid.valid is None else ~x.isfinite() & grid.valid[..., None]
            return bool(wrong.any())

        if bad(trajectory[-1]):
            step = next(i for i, x in enumerate(trajectory) if bad(x))
            raise not_finite(f"latents after step {step} of {self.steps}", model, branch)

    def _scale_inputs(self, contexts: GuidedContext, branch: GenerationBranch, noise: Tensor) -> GuidanceScales | None:
        """Scales for the embedders of a CFG-distilled branch; the image scale only where the context has images."""
        if not branch.guided:
            return None
        if self.guidance is None:
            raise ValueError("a CFG-distilled branch takes guidance scales as inputs: give the sampler a Guidance")
        text = noise.new_full((len(noise),), self.guidance.text_scale)
        has_image = self.guidance.image_scale if contexts.no_image is not None else 0.0
        return GuidanceScales(text, noise.new_full((len(noise),), has_image))
