"""Initial weights of the parts of a BAGEL that are not pretrained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import cycle
from typing import cast

import torch
from torch import Tensor, nn

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.embeddings import PositionTable, sincos_frequencies, sincos_position_table
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.mot import ExpertLayer


def restart_generation(model: Bagel, seed: int = 0, *, copies: bool = False) -> None:
    """Give the generation branch the weights of a new one, whose velocity is zero.

    copies: start its experts as the understanding's. Fresh ones, with much smaller weights and attention that looks at
    what lies near, learn faster from scratch.
    """
    generator = torch.Generator().manual_seed(seed)
    twins = model.understanding.state_dict() if copies else {}
    model.generation.load_state_dict({
        name: twins[name] if name in twins else fresh(module, name, empty, generator)
        for name, module, empty in leaves(model.generation, "")
    })  # fmt: skip
    if not copies:
        _look_nearby(model.generation)


@torch.no_grad()
def _look_nearby(branch: GenerationBranch) -> None:
    """Let queries and keys of fresh experts begin with the places that `sincos_position_table` puts into tokens.

    All tokens of a picture have one rope position, so experts would first have to learn what lies where. Every other
    head looks one place to the right, below, to the left or above; the rest look anywhere, for what the text says.
    What else goes into tokens leaves the columns of the places alone.
    """
    inputs = [cast(ExpertLayer, layer).input for layer in branch.layers]
    width, head_dim = branch.vae2llm.out_features, inputs[0].head_dim
    count = head_dim // 4  # frequencies of both axes, each with sine and cosine
    index = torch.arange(count)
    frequency = torch.tensor(sincos_frequencies(width)[:count], dtype=torch.float32)
    columns = index + width // 4 * torch.arange(4)[:, None]  # of sin x, cos x, sin y, cos y

    def place(x: int, y: int) -> Tensor:
        """(head_dim, width): takes sines and cosines of the place moved by x and y from a token."""
        rows = torch.zeros(head_dim, width)
        for axis, move in ((0, x), (1, y)):
            sine, cosine = columns[2 * axis], columns[2 * axis + 1]
            first, second = 2 * axis * count + index, (2 * axis + 1) * count + index
            rows[first, sine] = rows[second, cosine] = torch.cos(frequency * move)
            rows[first, cosine] = torch.sin(frequency * move)
            rows[second, sine] = -torch.sin(frequency * move)
        return rows

    moves = cycle([(1, 0), None, (0, 1), None, (-1, 0), None, (0, -1), None])
    for attention in inputs:
        for query, move in zip(attention.q_proj.weight.unflatten(0, (-1, head_dim)), moves, strict=False):
            if move is not None:
                query.mul_(0.3).add_(place(*move))
        attention.k_proj.weight.unflatten(0, (-1, head_dim)).mul_(0.5).add_(place(0, 0))
    for last in (branch.vae2llm, cast(nn.Linear, branch.time_embedder.mlp[-1])):
        last.weight[columns.flatten()] = 0


def leaves(root: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Every parameter and buffer: full name, the module that owns it, and itself."""
    for path, module in root.named_modules(prefix=prefix):
        for kind, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield f"{path}.{kind}", module, value


def fresh(module: nn.Module, name: str, empty: Tensor, generator: torch.Generator) -> Tensor:
    """First value of the tensor `name` of `module`, of the shape of `empty`; draws are made where `generator` is.

    Linear layers have a deviation of 0.7 / sqrt(fan-in), those that write to a residual stream 0.3 of it, embeddings
    one of 0.02; norms are ones, biases and the velocity head zeros.
    """
    if isinstance(module, PositionTable):
        return sincos_position_table(module.side, empty.shape[1])
    if name.endswith((".bias", "llm2vae.weight")):
        return torch.zeros(empty.shape)
    if isinstance(module, nn.Linear):
        residual = re.search(r"layers\..*\.(o_proj|down_proj|out_proj|fc2)\.weight$", name)
        deviation = 0.7 * module.in_features**-0.5 * (0.3 if residual else 1.0)
        return torch.randn(empty.shape, generator=generator, device=generator.device) * deviation
    if isinstance(module, nn.Embedding):
        return torch.randn(empty.shape, generator=generator, device=generator.device) * 0.02
    return torch.ones(empty.shape)  # norms
