"""The latent discriminator: a generation branch, trained with heads on its layers, conditioned on time and context."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hyperbagel.bagel.branch import Conditions, GenerationBranch, conditions_of
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.context import Context
from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.model import Bagel
from hyperbagel.critics.heads import HeadStack, check_layers, spread_layers


@dataclass(frozen=True)
class CriticSettings:
    """Heads of a critic."""

    layers: int | tuple[int, ...] = 4
    """After which layers (from 1) the heads stand, or how many heads there are, evenly spread."""
    channels: int = 128
    """Width of a head, in channels."""

    def tapped(self, layers: int, what: str) -> tuple[int, ...]:
        """The layers to tap in a network of so many. Raises ValueError for layers that it does not have."""
        chosen = spread_layers(self.layers, layers) if isinstance(self.layers, int) else self.layers
        return check_layers(chosen, layers, what)


@dataclass(frozen=True)
class JudgedBatch:
    """What latents are judged together with: context and grids of B images, and the conditions they were made under."""

    context: Context
    grid: LatentGrid
    conditions: Conditions = field(default_factory=dict)

    def repeat(self, times: int) -> JudgedBatch:
        """The same for `times` stacked batches of latents."""
        conditions = {name: values.repeat(times) for name, values in self.conditions.items()}
        return JudgedBatch(Context.stack([self.context] * times), self.grid.repeat(times), conditions)


class LatentCritic(nn.Module):
    """Multi-head discriminator of latents at any noise level (DMDX section 3), for token grids of any size.

    Args:
        backbone: a branch that trains too; it sees the conditions that it takes.
        config: of the model that the branch belongs to.
        settings: which layers are tapped, and how wide the heads are.

    Examples:
        >>> from hyperbagel.critics.latent import CriticSettings
        >>> critic = LatentCritic(model.generation.copy(), model.config, CriticSettings(layers=2, channels=8))
        >>> critic(model, episode.x_0, torch.full((len(episode),), 0.5), episode.judged).shape
        torch.Size([1, 2])
    """

    def __init__(self, backbone: GenerationBranch, config: BagelConfig, settings: CriticSettings) -> None:
        super().__init__()
        self.backbone = backbone
        # The velocity head is no part of a critic, and would keep strict gradient reducers waiting.
        self.backbone.norm.requires_grad_(False)
        self.backbone.llm2vae.requires_grad_(False)
        self.layers = settings.tapped(config.llm.num_hidden_layers, "the generation branch")
        self.heads = HeadStack(len(self.layers), config.llm.hidden_size, settings.channels)

    def forward(self, model: Bagel, x_t: Tensor, t: Tensor, judged: JudgedBatch) -> Tensor:
        """Logits (B, heads), high for real. x_t: (B, n, C) latents at noise level t (B,)."""
        conditions = conditions_of(self.backbone, judged.conditions, t)
        output = model.denoise_streams(
            x_t, t, judged.context, judged.grid, self.backbone, conditions, record_layers=True
        )
        logits: Tensor = self.heads([output.layers[i].gen for i in self.layers], judged.grid.sizes)
        return logits

    def compare(self, model: Bagel, latents: tuple[Tensor, ...], t: Tensor, judged: JudgedBatch) -> tuple[Tensor, ...]:
        """Logits of several batches of latents at the same times and in the same contexts, from one batched pass."""
        k = len(latents)
        logits = self(model, torch.cat(latents), t.repeat(k), judged.repeat(k))
        return tuple(logits.chunk(k))
