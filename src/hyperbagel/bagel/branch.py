"""The generation branch: the unit that distillation trains, swaps and ships.

Everything of BAGEL that only latent tokens use: the generation experts of all layers, the latent projections, the
timestep embedder, the latent position table and, after CFG distillation, the two guidance embedders.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.embeddings import PositionTable, TimestepEmbedder
from hyperbagel.bagel.mot import ExpertLayer


class GuidanceScales(NamedTuple):
    """Guidance scales as *inputs* of a CFG-distilled branch, each (B,) float.

    text: scale of the text guidance; image: of the image guidance, 0 for samples without a source image (there the
    image embedder stays out, as in the paper's section on CFG distillation).
    """

    text: Tensor
    image: Tensor


class GenerationBranch(nn.Module):
    """Generation experts, latent projections and embedders. A fresh branch has no guidance embedders."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        width = config.llm.hidden_size
        self.layers = nn.ModuleList(ExpertLayer(config.llm) for _ in range(config.llm.num_hidden_layers))
        self.norm = nn.RMSNorm(width, config.llm.rms_norm_eps)
        self.vae2llm = nn.Linear(config.latent_token_dim, width)
        self.llm2vae = nn.Linear(width, config.latent_token_dim)
        self.time_embedder = TimestepEmbedder(width)
        self.latent_pos_embed = PositionTable(config.max_latent_size, width)
        self.text_scale_embedder: TimestepEmbedder | None = None
        self.image_scale_embedder: TimestepEmbedder | None = None

    @property
    def guided(self) -> bool:
        """Whether the branch takes guidance scales as inputs."""
        return self.text_scale_embedder is not None

    def add_guidance_embedders(self) -> None:
        """Add the two guidance embedders; their last layer is zero, so that the branch's output does not change yet."""
        if self.guided:
            return
        weight = self.vae2llm.weight
        for name in ("text_scale_embedder", "image_scale_embedder"):
            embedder = TimestepEmbedder(weight.shape[0]).to(weight)
            for parameter in embedder.mlp[2].parameters():
                nn.init.zeros_(parameter)
            setattr(self, name, embedder)

    def copy(self) -> GenerationBranch:
        """An independent branch with equal weights (student, EMA, fake score, critic backbone)."""
        return copy.deepcopy(self)

    def embed(self, tokens: Tensor, t: Tensor, grid_ids: Tensor, scales: GuidanceScales | None = None) -> Tensor:
        """Latent tokens to layer inputs (B, N, D). tokens: (B, N, C), t: (B, N) or (B, 1) in [0, 1], grid_ids: (B, N).

        Raises ValueError when scales are given to a branch without guidance embedders, or missing for one with them.
        """
        if (scales is not None) != self.guided:
            raise ValueError(
                "this branch has guidance embedders: pass guidance scales"
                if self.guided
                else "this branch has no guidance embedders: it is not CFG-distilled, so scales are not its inputs"
            )
        condition = self.time_embedder(t)
        if scales is not None and self.text_scale_embedder is not None and self.image_scale_embedder is not None:
            image = self.image_scale_embedder(scales.image) * (scales.image > 0)[:, None]
            condition = condition + (self.text_scale_embedder(scales.text) + image)[:, None]
        x = self.vae2llm(tokens.to(self.vae2llm.weight.dtype))
        output: Tensor = x + condition + self.latent_pos_embed(grid_ids).to(x.dtype)
        return output

    def velocity_head(self, x: Tensor) -> Tensor:
        """Final norm and projection of the generation stream: (B, N, D) -> velocity (B, N, C) in float32."""
        velocity: Tensor = self.llm2vae(self.norm(x))
        return velocity.float() if velocity.dtype in (torch.bfloat16, torch.float16) else velocity
