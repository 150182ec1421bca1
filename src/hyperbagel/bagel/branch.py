"""The generation branch: the unit that distillation trains, swaps and ships.

Everything of BAGEL that only latent tokens use: the generation experts of all layers, the latent projections, the
timestep embedder, the latent position table and the embedders of further conditions, such as the guidance scales of a
CFG-distilled branch.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor, nn

from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.embeddings import PositionTable, TimestepEmbedder
from hyperbagel.bagel.mot import ExpertLayer

Conditions: TypeAlias = Mapping[str, Tensor]
"""Scalars that a branch takes beside the time: name -> (B,) float. A value of 0 leaves the condition of that image out,
as the paper's section on CFG distillation does with the image scale of samples without a source image."""

TEXT_SCALE, IMAGE_SCALE = "text_scale", "image_scale"
"""Conditions of a CFG-distilled branch: its guidance scales."""
DURATION = "duration"
"""Condition of a branch that knows where a step from t ends: t - s for the end time s."""

_FIRST = (TEXT_SCALE, IMAGE_SCALE)
_EMBEDDER = re.compile(r"(?P<condition>\w+)_embedder\.")


class GenerationBranch(nn.Module):
    """Generation experts, latent projections and embedders. A fresh branch takes no conditions but the time.

    Examples:
        >>> branch = model.generation.copy()
        >>> branch.add_condition("text_scale", "image_scale")
        >>> branch.guided, branch.conditions
        (True, ('text_scale', 'image_scale'))
    """

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        width = config.llm.hidden_size
        self.layers = nn.ModuleList(ExpertLayer(config.llm) for _ in range(config.llm.num_hidden_layers))
        self.norm = nn.RMSNorm(width, config.llm.rms_norm_eps)
        self.vae2llm = nn.Linear(config.latent_token_dim, width)
        self.llm2vae = nn.Linear(width, config.latent_token_dim)
        self.time_embedder = TimestepEmbedder(width)
        self.latent_pos_embed = PositionTable(config.max_latent_size, width)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that the branch takes beside the time."""
        return conditions_in(f"{name}." for name, _ in self.named_children())

    @property
    def guided(self) -> bool:
        """Whether the branch takes guidance scales as conditions: it is CFG-distilled."""
        return TEXT_SCALE in self.conditions

    def embedder(self, condition: str) -> TimestepEmbedder:
        """The embedder of a condition."""
        module = self.get_submodule(f"{condition}_embedder")
        assert isinstance(module, TimestepEmbedder)
        return module

    def add_condition(self, *names: str) -> None:
        """Take further conditions, unless the branch does already.

        The last layer of their embedders is zero, so that the branch's output does not change yet.
        """
        weight = self.vae2llm.weight
        for name in sorted(names, key=_rank):
            if name in self.conditions:
                continue
            embedder = TimestepEmbedder(weight.shape[0]).to(weight)
            for parameter in embedder.mlp[2].parameters():
                nn.init.zeros_(parameter)
            self.add_module(f"{name}_embedder", embedder)

    def copy(self) -> GenerationBranch:
        """An independent branch with equal weights (student, EMA, fake score, critic backbone)."""
        return copy.deepcopy(self)

    def embed(self, tokens: Tensor, t: Tensor, grid_ids: Tensor, conditions: Conditions | None = None) -> Tensor:
        """Latent tokens to layer inputs (B, N, D). tokens: (B, N, C), t: (B, N) or (B, 1) in [0, 1], grid_ids: (B, N).

        Raises ValueError unless the conditions are those that the branch takes.

        Examples:
            >>> tokens = torch.zeros(1, 4, model.config.latent_token_dim)
            >>> grid_ids = torch.arange(4)[None]
            >>> model.generation.embed(tokens, torch.full((1, 1), 0.5), grid_ids).shape[:2]
            torch.Size([1, 4])
        """
        given = set(conditions or ())
        if given != set(self.conditions):
            wanted = ", ".join(self.conditions) or "none"
            raise ValueError(f"conditions of this branch: {wanted}; given: {', '.join(sorted(given)) or 'none'}")
        time = self.time_embedder(t)
        if conditions:
            embedded = (
                self.embedder(name)(conditions[name]) * (conditions[name] != 0)[:, None] for name in self.conditions
            )
            time = time + reduce(torch.add, embedded)[:, None]
        x = self.vae2llm(tokens.to(self.vae2llm.weight.dtype))
        output: Tensor = x + time + self.latent_pos_embed(grid_ids).to(x.dtype)
        return output

    def velocity_head(self, x: Tensor) -> Tensor:
        """Final norm and projection of the generation stream: (B, N, D) -> velocity (B, N, C) in float32."""
        velocity: Tensor = self.llm2vae(self.norm(x))
        return velocity.float() if velocity.dtype in (torch.bfloat16, torch.float16) else velocity


def conditions_in(keys: Iterable[str]) -> tuple[str, ...]:
    """The conditions of a branch whose state dict, or file, has these keys, in the order of all branches."""
    found = {match["condition"] for key in keys if (match := _EMBEDDER.match(key))}
    return tuple(sorted(found - {"time"}, key=_rank))


def conditions_of(
    branch: GenerationBranch, given: Conditions, t: Tensor, s: Tensor | None = None
) -> dict[str, Tensor] | None:
    """Those of the given conditions that a branch takes, and the duration of its step from t to s, each (B,); None for
    a branch that takes none.

    Without s, or with s = t, the velocity at t itself is meant. Raises KeyError for one that was not given.
    """
    durations = {DURATION: torch.zeros_like(t) if s is None else t - s}
    known = {**given, **durations}
    return {name: known[name] for name in branch.conditions} or None


def _rank(condition: str) -> tuple[int, str]:
    """For one order in all branches, new or from a file: what is summed over them is rounded."""
    return _FIRST.index(condition) if condition in _FIRST else len(_FIRST), condition
