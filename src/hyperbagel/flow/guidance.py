"""Classifier-free guidance as BAGEL does it: text and image scales, norm-limited, per image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.context import Context, GuidedContext
from hyperbagel.bagel.grid import LatentGrid

if TYPE_CHECKING:
    from hyperbagel.bagel.model import Bagel

Renorm = Literal["global", "channel", "text_channel"]
EPSILON = 1e-8


@dataclass(frozen=True)
class Guidance:
    """How strong guidance is, how its result is limited, and at which times it is used."""

    text_scale: float = 4.0
    """Strength of the text guidance; <= 1 means no guidance at all."""
    image_scale: float = 1.0
    """Strength of the guidance by source pictures; <= 1 means that its pass is left out."""
    renorm: Renorm = "global"
    """What the renorm takes norms over: `global` the whole image, `channel` each token, `text_channel` each token and
    before the image term."""
    renorm_min: float = 0.0
    """The scale factor of the renorm is clamped to [renorm_min, 1], so 1 switches the renorm off."""
    interval: tuple[float, float] = (0.4, 1.0)
    """(lo, hi]: guidance is on where lo < t <= hi."""

    def __post_init__(self) -> None:
        if self.renorm not in ("global", "channel", "text_channel"):
            raise ValueError(f"renorm is {self.renorm!r}: choose global, channel or text_channel")
        if not 0 <= self.renorm_min <= 1:
            raise ValueError(f"renorm_min is {self.renorm_min}: it must be in [0, 1]")
        for name in ("text_scale", "image_scale"):
            if not 0 <= (scale := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} is {scale}: it must be a number from 0 on; 1 switches it off")

    def active(self, t: float) -> bool:
        """Whether guidance acts at time t."""
        return self.text_scale > 1 and self.interval[0] < t <= self.interval[1]

    @property
    def uses_image(self) -> bool:
        """Whether the image branch takes part."""
        return self.text_scale > 1 and self.image_scale > 1

    @property
    def passes(self) -> int:
        """Network evaluations of one guided step."""
        return 1 + (self.text_scale > 1) + self.uses_image


GENERATION = Guidance()
"""Text-to-image as the public BAGEL code does it; the default of samplers in recipes (`Samplers.generation`)."""
PAPER_GENERATION = replace(GENERATION, interval=(0.0, 1.0))
"""Text-to-image as Hyper-Bagel counts it: guidance at every step, hence 100 evaluations in 50 steps. The default of
`hyperbagel generate` and `app`, and of the teacher in the distillation stages."""
EDITING = Guidance(image_scale=2.0, renorm="text_channel", interval=(0.0, 1.0))
"""Editing as the public BAGEL code does it; the default of samplers in recipes (`Samplers.editing`)."""
PAPER_EDITING = replace(EDITING, interval=(0.4, 1.0))
"""Editing as Hyper-Bagel counts it: guidance only where t > 0.4, hence 132 evaluations in 50 steps. The default of
`hyperbagel edit` and `app`, and of the teacher in the distillation stages."""


def _column(scale: float | Tensor, like: Tensor) -> Tensor:
    """A scale per image, (B, 1, 1). A number is filled in where it is used: a copy would wait for the device."""
    if not isinstance(scale, Tensor):
        return like.new_full((1, 1, 1), scale)
    return scale.to(like).reshape(-1, 1, 1)


def _limit(v: Tensor, guided: Tensor, dims: tuple[int, ...], minimum: float) -> Tensor:
    """`guided` scaled down to the norm of the unguided `v` over `dims`."""
    norm = torch.linalg.vector_norm(v, dim=dims, keepdim=True)
    guided_norm = torch.linalg.vector_norm(guided, dim=dims, keepdim=True)
    return guided * (norm / (guided_norm + EPSILON)).clamp(minimum, 1.0)


def combine(
    v: Tensor,
    v_no_text: Tensor,
    v_no_image: Tensor | None,
    guidance: Guidance,
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Guided velocity: v_text = v_nt + s_t (v - v_nt); v_full = v_ni + s_i (v_text - v_ni); then the renorm.

    All velocities (B, n, C), zero at padding; v_no_image None: no image guidance. scales: (text, image), each (B,), in
    place of guidance.text_scale and image_scale; scales <= 1 switch their term off for that image.

    Examples:
        >>> from hyperbagel.flow.guidance import Guidance
        >>> v, v_no_text = torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 1.0)
        >>> combine(v, v_no_text, None, Guidance(text_scale=3.0, renorm_min=1.0)).item()  # 1 + 3 (2 - 1)
        4.0
    """
    text, image = (_column(s, v) for s in scales or (guidance.text_scale, guidance.image_scale))
    guided = v_no_text + text * (v - v_no_text)
    if guidance.renorm == "text_channel":
        guided = _limit(v, guided, (-1,), guidance.renorm_min)
    if v_no_image is not None:
        guided = torch.where(image > 1, v_no_image + image * (guided - v_no_image), guided)
    if guidance.renorm == "global":
        guided = _limit(v, guided, (-2, -1), guidance.renorm_min)
    elif guidance.renorm == "channel":
        guided = _limit(v, guided, (-1,), guidance.renorm_min)
    return torch.where(text > 1, guided, v)


APART = 2048
"""Latent tokens of a picture from which guidance variants of different lengths run one after another: so many keep a
GPU busy, and attention takes a third less time without a mask over padding."""


@dataclass(frozen=True)
class GuidedPass:
    """The contexts of a guided call: one that stacks all variants, the conditional rows first, or one for each variant.

    grid: of the images that run at once.
    """

    contexts: tuple[Context, ...]
    grid: LatentGrid
    variants: int

    @staticmethod
    def of(contexts: GuidedContext, grid: LatentGrid, guidance: Guidance) -> GuidedPass:
        """The variants that `guidance` uses. Raises ValueError when one was not prefilled."""
        parts: list[Context] = [contexts.full]
        wanted = (
            (guidance.text_scale > 1, contexts.no_text, "text"),
            (guidance.uses_image, contexts.no_image, "image"),
        )
        for used, variant, name in wanted:
            if used and variant is None:
                raise ValueError(f"{name} guidance needs a context prefilled with {name}=True")
            if used and variant is not None:
                parts.append(variant)
        if grid.valid is None and grid.position_ids.shape[1] >= APART:
            dense = tuple(part.dense() for part in parts)
            padded = len({part.length for part in dense}) > 1
            if padded and all(part.valid is None for part in dense):
                return GuidedPass(dense, grid, len(parts))
        return GuidedPass((Context.stack(parts),), grid.repeat(len(parts)), len(parts))

    def velocity(
        self,
        model: Bagel,
        x_t: Tensor,
        t: Tensor,
        guidance: Guidance,
        scales: tuple[Tensor, Tensor] | None = None,
        branch: GenerationBranch | None = None,
    ) -> Tensor:
        """Guided velocity of x_t (B, n, C) at t (B,) -> (B, n, C)."""
        k = self.variants
        at_once = k // len(self.contexts)
        x_t, t = x_t.repeat(at_once, 1, 1), t.repeat(at_once)
        velocities = [model.velocity(x_t, t, context, self.grid, branch) for context in self.contexts]
        parts = [part for velocity in velocities for part in velocity.chunk(at_once)]
        if k == 1:
            return parts[0]
        return combine(parts[0], parts[1], parts[2] if k > 2 else None, guidance, scales)
