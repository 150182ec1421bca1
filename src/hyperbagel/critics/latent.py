"""The latent discriminator: a generation branch, trained with heads on its layers, conditioned on time and context."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from hyperbagel.bagel.branch import Conditions, GenerationBranch, conditions_of
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.context import Context
from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.model import Bagel
from hyperbagel.critics.heads import HeadKind, HeadStack, check_layers, spread_layers


@dataclass(frozen=True)
class CriticSettings:
    """Heads of a critic."""

    layers: int | tuple[int, ...] = 4
    """After which layers (from 1) the heads stand, or how many heads there are, evenly spread."""
    channels: int = 128
    """Width of a head, in channels."""
    kind: HeadKind = "convolutional"
    """What a head is: DMDX's strided convolutions, or layers on each place alone, for maps of a few places a side."""

    def tapped(self, layers: int, what: str) -> tuple[int, ...]:
        """The layers to tap in a network of so many. Raises ValueError for layers that it does not have."""
        chosen = spread_layers(self.layers, layers) if isinstance(self.layers, int) else self.layers
        return check_layers(chosen, layers, what)


class Start(NamedTuple):
    """Where jumps began: latents x (B, n, C) at times t (B,)."""

    x: Tensor
    t: Tensor


@dataclass(frozen=True)
class JudgedBatch:
    """What latents are judged together with: context and grids of B images, the conditions they were made under, and
    where the jumps to them began, for a critic that sees it."""

    context: Context
    grid: LatentGrid
    conditions: Conditions = field(default_factory=dict)
    start: Start | None = None

    def repeat(self, times: int) -> JudgedBatch:
        """The same for `times` stacked batches of latents."""
        conditions = {name: values.repeat(times) for name, values in self.conditions.items()}
        start = self.start and Start(self.start.x.repeat(times, 1, 1), self.start.t.repeat(times))
        return JudgedBatch(Context.stack([self.context] * times), self.grid.repeat(times), conditions, start)


class LatentCritic(nn.Module):
    """Multi-head discriminator of latents at any noise level (DMDX section 3), for token grids of any size.

    Args:
        backbone: a branch that trains too; it sees the conditions that it takes.
        config: of the model that the branch belongs to.
        settings: which layers are tapped, and the heads.
        sees_start: whether it is shown the velocity of the jump to what it judges, beside it (SDXL-Lightning's critic
            sees where a jump began, arXiv 2402.13929). At first it does not look at it.

    Examples:
        >>> from hyperbagel.critics.latent import CriticSettings
        >>> critic = LatentCritic(model.generation.copy(), model.config, CriticSettings(layers=2, channels=8))
        >>> critic(model, episode.x_0, torch.full((len(episode),), 0.5), episode.judged).shape
        torch.Size([1, 2])
    """

    def __init__(
        self, backbone: GenerationBranch, config: BagelConfig, settings: CriticSettings, sees_start: bool = False
    ) -> None:
        super().__init__()
        self.backbone, self.sees_start = backbone, sees_start
        if sees_start:
            self.backbone.vae2llm = _widened(self.backbone.vae2llm)
        # The velocity head is no part of a critic, and would keep strict gradient reducers waiting.
        self.backbone.norm.requires_grad_(False)
        self.backbone.llm2vae.requires_grad_(False)
        self.layers = settings.tapped(config.llm.num_hidden_layers, "the generation branch")
        self.heads = HeadStack(len(self.layers), config.llm.hidden_size, settings.channels, settings.kind)

    def forward(self, model: Bagel, x_t: Tensor, t: Tensor, judged: JudgedBatch) -> Tensor:
        """Logits (B, heads), high for real. x_t: (B, n, C) latents at noise level t (B,).

        Raises ValueError if it is to see where jumps began, and is not told.
        """
        if self.sees_start:
            if judged.start is None:
                raise ValueError("this critic sees where jumps began: give JudgedBatch.start")
            jump = (judged.start.x - x_t) / (judged.start.t - t)[:, None, None]
            x_t = torch.cat([x_t, jump], dim=-1)
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


def _widened(layer: nn.Linear) -> nn.Linear:
    """The layer for twice as many inputs, of which the second half has no weight yet. It trains, whatever else does."""
    bias = layer.bias is not None
    wide = skip_init(nn.Linear, 2 * layer.in_features, layer.out_features, bias).to(layer.weight)
    with torch.no_grad():
        wide.weight.copy_(torch.cat([layer.weight, torch.zeros_like(layer.weight)], dim=1))
        if bias:
            wide.bias.copy_(layer.bias)
    return wide
