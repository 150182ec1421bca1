"""Layers by torch.compile: how many kinds of passes are compiled."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
import torch._dynamo
from torch import Tensor

from hyperbagel.bagel import mot
from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE
from hyperbagel.bagel.joined import join
from hyperbagel.bagel.segments import TextSegment
from hyperbagel.training.networks import LoRA, Training, trainable_branch
from tests.nano import nano_bagel


def test_more_kinds_of_passes_are_compiled_than_pytorch_does_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its limit PyTorch falls back in silence. Here numbers of dimensions stand for kinds of passes."""

    def doubled(x: Tensor) -> Tensor:
        return 2 * x

    monkeypatch.setattr(mot, "layer_forward", doubled)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    # The one of other tests is not touched; the process's limit is put back.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=8):
        forward = mot.compiled_layer_forward.__wrapped__()
        for dimensions in range(12):
            x = torch.ones((2,) * dimensions)
            assert torch.equal(forward(x), 2 * x)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is compiled from now on. PyTorch's tracing is real, the compiler is not."""
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(mot, "compiled_layer_forward", cache(mot.compiled_layer_forward.__wrapped__))
    return graphs


@pytest.mark.parametrize("joined", [False, True])
@torch.no_grad()
def test_layers_of_fixed_shapes_are_compiled_once_a_size_whatever_the_context(
    joined: bool, graphs: list[object]
) -> None:
    """And compute the same."""
    plain, compiled = nano_bagel(), nano_bagel()
    compiled.compiled = "fixed"
    if joined:
        for model in (plain, compiled):
            join(model.understanding, model.generation)
    generator = torch.Generator().manual_seed(0)
    counts = []
    for side, words in ((32, 3), (32, 4), (32, 9), (64, 5), (64, 7)):
        ids = torch.randint(10, 500, (words,), generator=generator)
        contexts = [model.prefill([[TextSegment(ids)]]) for model in (plain, compiled)]
        grid = plain.latent_grid([(side, side)])
        x_t = torch.randn(1, grid.position_ids.shape[1], plain.config.latent_token_dim, generator=generator)
        t = torch.full((1,), 0.5)
        expected, got = (
            model.velocity(x_t, t, context, grid) for model, context in zip((plain, compiled), contexts, strict=True)
        )
        assert torch.equal(expected, got)
        counts.append(len(graphs))
    assert counts == [1, 1, 1, 2, 2]


def test_all_layers_are_one_graph_a_shape_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same result and gradients. PyTorch's tracing is real here, the compiler is not."""
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object, **options: object) -> object:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(mot, "compiled_layers", cache(mot.compiled_layers.__wrapped__))
    plain, compiled = nano_bagel().train(), nano_bagel().train()
    compiled.compiled = "all layers"
    plain.multiple = compiled.multiple = 8
    generator = torch.Generator().manual_seed(0)
    counts = []
    for words in (3, 5, 6, 9, 14):
        document = [TextSegment(torch.randint(10, 500, (words,), generator=generator))]
        grid = plain.latent_grid([(32, 32)])
        x_t = torch.randn(1, grid.position_ids.shape[1], plain.config.latent_token_dim, generator=generator)
        results = []
        for model in (plain, compiled):
            velocity = model.velocity(x_t, torch.full((1,), 0.5), model.prefill([document]), grid)
            velocity.square().mean().backward()
            results.append((velocity, [p.grad for p in model.generation.parameters()]))
        torch.testing.assert_close(results[1], results[0])
        counts.append(len(graphs))
    assert counts == [2, 2, 2, 4, 4]  # reading and denoising, of texts of up to 8 and 16 tokens
    with torch.no_grad():
        compiled.eval().velocity(x_t, torch.full((1,), 0.5), compiled.prefill([document]), grid)
    assert len(graphs) == 4


@pytest.mark.parametrize("mixed", [False, True])
def test_adapters_train_in_compiled_layers_that_are_recomputed(mixed: bool, graphs: list[object]) -> None:
    """One graph for all layers but the first, and the gradients of plain ones; mixed: over a model in bfloat16."""
    pytest.importorskip("peft")
    gradients = []
    for compiled in (None, "any"):
        model = nano_bagel().requires_grad_(False)
        model = model.bfloat16() if mixed else model
        model.compiled, model.checkpointing = compiled, compiled is not None
        torch.manual_seed(0)  # of fresh adapters
        branch = trainable_branch(model.generation, Training(lora=LoRA(rank=2), dtype="float32"))
        with torch.no_grad():
            for name, value in branch.named_parameters():
                if "lora_B" in name:
                    value += 0.1
        x_t = torch.randn(1, 16, model.config.latent_token_dim, generator=torch.Generator().manual_seed(0))
        t = torch.full((1,), 0.5)
        with torch.no_grad():
            context = model.prefill([[TextSegment(torch.arange(10, 20))]])
        before = len(graphs)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            grid = model.latent_grid([(32, 32)])
            model.velocity(x_t, t, context, grid, branch, {TEXT_SCALE: t, IMAGE_SCALE: t}).square().sum().backward()
        gradients.append({name: p.grad for name, p in branch.named_parameters() if p.requires_grad})
        assert len(graphs) - before == (0 if compiled is None else 2)  # before the first layer markers have no gradient
    assert sum("lora_" in name for name in gradients[0]) == 2 * 2 * 7
    for name, expected in gradients[0].items():
        assert torch.equal(gradients[1][name], expected), name
