"""Exact steps, exact counts of evaluations, and samples that do not depend on the batch."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE
from hyperbagel.bagel.model import Bagel
from hyperbagel.flow.guidance import EDITING, GENERATION, PAPER_EDITING, PAPER_GENERATION, Guidance
from hyperbagel.flow.sampler import Sampler
from hyperbagel.flow.schedule import euler_step, timesteps
from tests.bagel.tiny import CONFIG, MIXED_SIZES, STRIDE, Maker, mixed_documents, tiny_model

MAKE = Maker()
EDIT = [MAKE.latent(1, 2), MAKE.vit(8, 8), MAKE.text(3)]


@pytest.fixture
def model() -> Bagel:
    return tiny_model()


class Counter:
    """Counts what goes through the generation branch: calls, and images in them."""

    def __init__(self, model: Bagel) -> None:
        self.calls = self.images = 0
        model.generation.vae2llm.register_forward_hook(self)

    def __call__(self, module, inputs, output) -> None:
        self.calls, self.images = self.calls + 1, self.images + len(output)


@pytest.mark.parametrize(
    ("steps", "guidance", "nfe"),
    [
        (50, None, 50),
        (50, PAPER_GENERATION, 100),
        (50, PAPER_EDITING, 132),
        (50, GENERATION, 91),
        (50, EDITING, 150),
        (49, EDITING, 147),
        (6, None, 6),
        (1, None, 1),
        (1, PAPER_EDITING, 3),
        (4, Guidance(1.0), 4),
    ],
)
@torch.no_grad()
def test_steps_and_evaluations_are_exact(model: Bagel, steps: int, guidance: Guidance | None, nfe: int) -> None:
    contexts, grid = model.prefill_guided([EDIT], image=True), model.latent_grid([(8, 8)])
    counter, progress = Counter(model), []
    sampler = Sampler(steps, 3.0, guidance)
    sample = sampler.sample(model, contexts, grid, MAKE.noise(1, 1, 16), progress=lambda *args: progress.append(args))
    assert sample.nfe == counter.images == nfe
    assert counter.calls == steps  # the passes of a guided step are one batched call
    assert sample.trajectory.shape == (steps + 1, 1, 1, 16)
    assert progress == [(i + 1, steps) for i in range(steps)]


@torch.no_grad()
def test_sampling_is_the_euler_method(model: Bagel) -> None:
    contexts, grid, noise = model.prefill_guided([EDIT]), model.latent_grid([(8, 16)]), MAKE.noise(1, 2, 16)
    sample = Sampler(5, 3.0).sample(model, contexts, grid, noise)
    x, times = noise, timesteps(5, 3.0)
    for i in range(5):
        torch.testing.assert_close(sample.trajectory[i], x)
        x = euler_step(x, model.velocity(x, times[i : i + 1], contexts.full, grid), times[i], times[i + 1])
    torch.testing.assert_close(sample.latents, x)


@torch.no_grad()
def test_samples_of_a_mixed_batch_are_those_of_its_documents(model: Bagel) -> None:
    documents, sampler = mixed_documents(), Sampler(4, 3.0, Guidance(4.0, 1.5))
    grid = model.latent_grid([(h * STRIDE, w * STRIDE) for h, w in MIXED_SIZES])
    noise = MAKE.noise(*grid.position_ids.shape, CONFIG.latent_token_dim)
    together = sampler.sample(model, model.prefill_guided(documents, image=True), grid, noise)
    pictures = model.decode_latents(together.latents, grid)
    for i, (height, width) in enumerate(MIXED_SIZES):
        alone = model.latent_grid([(height * STRIDE, width * STRIDE)])
        contexts = model.prefill_guided([documents[i]], image=True)
        sample = sampler.sample(model, contexts, alone, noise[i : i + 1, : height * width])
        assert sample.nfe == together.nfe
        torch.testing.assert_close(together.latents[i, : height * width], sample.latents[0], atol=1e-4, rtol=1e-4)
        assert pictures[i].shape == (3, height * STRIDE, width * STRIDE)


@torch.no_grad()
def test_a_distilled_branch_takes_scales_and_one_pass_a_step(model: Bagel) -> None:
    branch = model.generation.copy()
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    plain = Sampler(6, 3.0)
    contexts, grid, noise = model.prefill_guided([EDIT], image=True), model.latent_grid([(8, 8)]), MAKE.noise(1, 1, 16)
    distilled = Sampler(6, 3.0, EDITING).sample(model, contexts, grid, noise, branch)
    assert distilled.nfe == 6
    # The embedders are still silent.
    torch.testing.assert_close(distilled.latents, plain.sample(model, contexts, grid, noise).latents)
    with pytest.raises(ValueError, match="give the sampler a Guidance"):
        plain.sample(model, contexts, grid, noise, branch)
    scales = []
    branch.embedder(IMAGE_SCALE).register_forward_hook(lambda module, inputs, output: scales.append(float(inputs[0])))
    Sampler(1, 3.0, EDITING).sample(model, contexts, grid, noise, branch)
    Sampler(1, 3.0, EDITING).sample(model, model.prefill_guided([EDIT[2:]]), grid, noise, branch)
    assert scales == [EDITING.image_scale, 0.0]


def test_gradients_flow_through_a_sampling(model: Bagel) -> None:
    """Few-step stages train through the sampler."""
    model.requires_grad_(False)
    student = model.generation.copy().requires_grad_()
    with torch.no_grad():
        contexts = model.prefill_guided([EDIT])
    sample = Sampler(2, 3.0).sample(model, contexts, model.latent_grid([(8, 8)]), MAKE.noise(1, 1, 16), student)
    sample.latents.square().sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


class Looks(TorchDispatchMode):
    """Counts what makes a process wait for an accelerator: values that it looks at, and values that it brings there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = self.brought = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += func is torch.ops.aten._local_scalar_dense.default
        self.brought += func is torch.ops.aten.lift_fresh.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("guidance", [None, PAPER_EDITING])
@torch.no_grad()
def test_no_step_waits_for_the_device(model: Bagel, guidance: Guidance | None) -> None:
    contexts, grid = model.prefill_guided([EDIT], image=True), model.latent_grid([(8, 8)])
    noise = MAKE.noise(1, 1, 16)
    with Looks() as looks:
        Sampler(8, 3.0, guidance).sample(model, contexts, grid, noise)
    assert (looks.seen, looks.brought) == (1, 0)  # at the end, whether all latents are numbers


@torch.no_grad()
def test_contexts_that_no_step_uses_are_not_made(model: Bagel) -> None:
    assert Sampler(2, 3.0, Guidance(1.0)).read(model, [EDIT]).no_text is None
    text_alone = Sampler(2, 3.0, Guidance(4.0, 1.0)).read(model, [EDIT])
    assert text_alone.no_text is not None and text_alone.no_image is None
