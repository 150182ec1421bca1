"""The latent critic: what it is conditioned on, and that batches change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE
from hyperbagel.bagel.context import Context
from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import TextSegment
from hyperbagel.critics.latent import CriticSettings, JudgedBatch, LatentCritic, Start
from tests.nano import nano_bagel


@pytest.fixture(scope="module")
def model() -> Bagel:
    return nano_bagel().requires_grad_(False)


def critic_of(model: Bagel, sees_start: bool = False) -> LatentCritic:
    torch.manual_seed(0)
    branch = model.generation.copy().requires_grad_(True)
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    torch.nn.init.normal_(branch.text_scale_embedder.mlp[2].weight)  # type: ignore[union-attr]
    return LatentCritic(branch, model.config, CriticSettings(layers=2, channels=8), sees_start)


def context_of(model: Bagel, *texts: list[int]) -> Context:
    with torch.no_grad():
        return model.prefill([[TextSegment(torch.tensor(ids))] for ids in texts])


def judged(model: Bagel, sizes: list[tuple[int, int]], *texts: list[int]) -> JudgedBatch:
    grid = LatentGrid.of(sizes, model.config.max_latent_size)
    scales = {TEXT_SCALE: torch.full((len(sizes),), 3.0), IMAGE_SCALE: torch.zeros(len(sizes))}
    return JudgedBatch(context_of(model, *texts), grid, scales)


def latents(model: Bagel, batch: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, n, model.config.latent_token_dim, generator=torch.Generator().manual_seed(seed))


def test_logits_depend_on_latent_time_context_and_scales(model: Bagel) -> None:
    critic, x, t = critic_of(model), latents(model, 1, 16), torch.tensor([0.3])
    where = judged(model, [(4, 4)], [5, 6])
    base = critic(model, x, t, where)
    assert base.shape == (1, 2)
    scales = {TEXT_SCALE: torch.tensor([1.5]), IMAGE_SCALE: torch.zeros(1)}
    others = (
        critic(model, latents(model, 1, 16, seed=1), t, where),
        critic(model, x, torch.tensor([0.8]), where),
        critic(model, x, t, judged(model, [(4, 4)], [9, 6])),
        critic(model, x, t, JudgedBatch(where.context, where.grid, scales)),
    )
    assert all((other - base).abs().max() > 1e-5 for other in others)


def test_batches_of_different_sizes_and_contexts_change_nothing(model: Bagel) -> None:
    critic, x = critic_of(model), latents(model, 2, 16)
    t = torch.tensor([0.3, 0.9])
    together = critic(model, x, t, judged(model, [(2, 3), (4, 4)], [5, 6, 7], [8]))
    one = critic(model, x[:1, :6], t[:1], judged(model, [(2, 3)], [5, 6, 7]))
    two = critic(model, x[1:], t[1:], judged(model, [(4, 4)], [8]))
    torch.testing.assert_close(together, torch.cat([one, two]), atol=1e-5, rtol=1e-4)


def test_compared_in_one_pass_as_in_several(model: Bagel) -> None:
    critic, t = critic_of(model), torch.tensor([0.3, 0.9])
    where = judged(model, [(2, 3), (4, 4)], [5, 6, 7], [8])
    samples = tuple(latents(model, 2, 16, seed) for seed in range(3))
    for logits, x in zip(critic.compare(model, samples, t, where), samples, strict=True):
        torch.testing.assert_close(logits, critic(model, x, t, where), atol=1e-5, rtol=1e-4)


def test_a_critic_that_sees_the_start_begins_as_one_that_does_not_and_learns_from_the_jump(model: Bagel) -> None:
    plain, critic, t = critic_of(model), critic_of(model, sees_start=True), torch.tensor([0.3, 0.9])
    where = judged(model, [(2, 3), (4, 4)], [5, 6, 7], [8])
    samples = tuple(latents(model, 2, 16, seed) for seed in range(2))
    seen = replace(where, start=Start(latents(model, 2, 16, seed=5), torch.tensor([0.5, 1.0])))
    for logits, expected in zip(
        critic.compare(model, samples, t, seen), plain.compare(model, samples, t, where), strict=True
    ):
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    with torch.no_grad():  # of the second half of its inputs, one reads the jump of the first channel
        critic.backbone.vae2llm.weight.zero_()
        critic.backbone.vae2llm.weight[:, model.config.latent_token_dim] = 1.0
    x, start = samples[0], Start(samples[0].clone(), torch.tensor([0.5, 1.0]))
    start.x[0, :, 0] += 0.2 * torch.arange(16)  # a velocity of 1 over a time of 0.2
    read: list[Tensor] = []
    handle = critic.backbone.vae2llm.register_forward_hook(lambda _m, _i, output: read.append(output))
    critic(model, x, t, replace(where, start=start))
    handle.remove()
    jump = read[0][..., 0] - (critic.backbone.vae2llm.bias[0] if critic.backbone.vae2llm.bias is not None else 0)
    torch.testing.assert_close(jump, torch.stack([torch.arange(16.0), torch.zeros(16)]), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"JudgedBatch\.start"):
        critic(model, x, t, where)


def test_what_sees_the_start_trains_in_a_backbone_of_adapters_too(model: Bagel) -> None:
    branch = model.generation.copy().requires_grad_(False)
    critic = LatentCritic(branch, model.config, CriticSettings(layers=2, channels=8), sees_start=True)
    trained = {name for name, value in critic.named_parameters() if value.requires_grad}
    assert {name for name in trained if not name.startswith("heads.")} == {
        f"backbone.vae2llm.{part}" for part in ("weight", "bias")
    }


def test_gradient_reaches_latents_heads_and_backbone_but_not_the_model(model: Bagel) -> None:
    critic, x = critic_of(model), latents(model, 1, 16).requires_grad_()
    critic(model, x, torch.tensor([0.3]), judged(model, [(4, 4)], [5])).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    without = {n for n, p in critic.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()
    assert all(p.grad is None for p in model.parameters())


def test_largest_official_grid() -> None:
    """64x64 tokens on a nano model with the official position table."""
    from dataclasses import replace

    from hyperbagel.bagel.build.assemble import NANO

    model = nano_bagel(replace(NANO, max_latent_size=64))
    critic = critic_of(model)
    with torch.no_grad():
        logits = critic(model, latents(model, 1, 4096), torch.tensor([0.5]), judged(model, [(64, 64)], [5]))
    assert logits.isfinite().all()
