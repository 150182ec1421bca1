"""How far an evaluation is from one in float32: what bfloat16, and rounded weights, cost."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE, GenerationBranch
from hyperbagel.bagel.context import Context
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document
from hyperbagel.pipeline.painter import largest_square, seeded_noise


class _InFloat32(nn.Module):
    """A part of a layer whose weights are in float32 only while it runs."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *inputs: Any) -> Any:
        """As the part."""
        return copy.deepcopy(self.part).float()(*inputs)


def in_float32(model: Bagel, branch: GenerationBranch) -> tuple[Bagel, GenerationBranch]:
    """The same networks, which compute in float32, for texts and latents; they share the layers' weights, and take
    little memory."""
    shared: list[nn.Module] = [model.understanding.layers, model.understanding.vision, model.autoencoder]
    shared += [model.generation.layers, branch.layers]
    kept: dict[int, object] = {id(value): value for part in shared for value in part.parameters()}
    exact, exact_branch = copy.deepcopy((model, branch), kept)
    for network in (exact.understanding, exact.generation, exact_branch):
        for layer in network.layers:
            for name in ("input", "output"):
                layer.add_module(name, _InFloat32(layer.get_submodule(name)))
        for name, part in network.named_children():
            if name not in ("layers", "vision"):
                part.float()
    return exact, exact_branch


@torch.inference_mode()
def evaluation(model: Bagel, branch: GenerationBranch, document: Document) -> tuple[partial[Tensor], Context]:
    """One evaluation of a distilled branch for a picture of the largest size, and the context that it reads."""
    context = model.prefill([document])
    grid = model.latent_grid([largest_square(model.config)])
    x_t = seeded_noise(grid, [0], model.config.latent_token_dim).to(model.device)
    t = torch.full((1,), 0.5, device=model.device)
    scales = {TEXT_SCALE: torch.full_like(t, 4.0), IMAGE_SCALE: torch.zeros_like(t)}
    return partial(model.velocity, x_t, t, context, grid, branch, scales), context


def distance(value: Tensor, exact: Tensor) -> float:
    """Norm of the difference, over that of the exact value."""
    return float((value.float() - exact).norm() / exact.norm())
