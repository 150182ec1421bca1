"""Noisy pictures of pretraining, with the times and noise that made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.layout import Layout
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.vision import patches_of
from hyperbagel.flow.randomness import normal, uniform
from hyperbagel.flow.schedule import interpolate, logit_normal


@dataclass(frozen=True)
class NoisyPictures:
    """B pictures of up to n latent tokens. x_0, noise, x_t: (B, n, C) float32, zero at padding but for the noise;
    t: (B,); grid: of their tokens."""

    x_0: Tensor
    noise: Tensor
    x_t: Tensor
    t: Tensor
    grid: LatentGrid

    @property
    def generated(self) -> Tensor:
        """(B, n) bool, true at tokens."""
        if self.grid.valid is not None:
            return self.grid.valid
        return torch.ones(self.x_0.shape[:2], dtype=torch.bool, device=self.x_0.device)


def noisy_pictures(
    model: Bagel, latents: Sequence[Tensor], draws: int, shift: float, generator: torch.Generator
) -> NoisyPictures:
    """Pictures as latents (C, h, w), all of them `draws` times over: picture i of P is rows i, i + P, i + 2 P, ...

    The times of these rows take turns in the ranges between the quantiles of their distribution, the logit-normal one
    shifted by `shift`.
    """
    factor = model.config.autoencoder.downsample
    sizes = [(latent.shape[-2] * factor, latent.shape[-1] * factor) for latent in latents]
    x_0 = patches_of(latents, model.config.latent_patch_size).float().repeat(draws, 1, 1)
    drawn = uniform(len(x_0), (0.0, 1.0), generator)
    turn = torch.arange(draws, device=drawn.device).repeat_interleave(len(latents))
    quantile = (drawn + turn) / draws
    t = logit_normal(torch.special.ndtri(quantile), shift).to(x_0)
    noise = normal(x_0.shape, generator).to(x_0)
    return NoisyPictures(x_0, noise, interpolate(x_0, noise, t[:, None, None]), t, model.latent_grid(sizes * draws))


def noisy_latents(layout: Layout, shift: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """All latent tokens of a layout noised (B, Ng, C), their times (B, Ng), and the noise (B, Ng, C).

    One logit-normal time an image, shifted by `shift`; conditions stay clean, at t = 0.
    """
    raw = normal(layout.image_loss.shape, generator).to(layout.latents.device)
    per_image = torch.where(layout.image_loss, logit_normal(raw, shift), 0.0)
    t = torch.zeros_like(layout.image, dtype=torch.float32)
    if len(per_image):
        t = per_image[layout.image.clamp(min=0)] * (layout.image >= 0)
    noise = normal(layout.latents.shape, generator).to(layout.latents)
    return interpolate(layout.latents, noise, t[..., None]), t, noise
