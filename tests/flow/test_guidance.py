"""Guidance against its formulas, image by image."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.model import Bagel
from hyperbagel.flow.guidance import EDITING, GENERATION, PAPER_EDITING, Guidance, GuidedPass, combine
from tests.bagel.tiny import CONFIG, MIXED_SIZES, STRIDE, Maker, mixed_documents, tiny_model

RENORMS = ("global", "channel", "text_channel")


@pytest.fixture(scope="module")
def model() -> Bagel:
    return tiny_model()


@pytest.fixture
def velocities() -> tuple[Tensor, Tensor, Tensor]:
    """v, v without text, v without image: two images of 5 tokens."""
    v, v_no_text, v_no_image = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0)).unbind()
    return v, v_no_text, v_no_image


def norm(v: Tensor, renorm: str) -> Tensor:
    return v.norm(dim=(-2, -1), keepdim=True) if renorm == "global" else v.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("renorm", RENORMS)
def test_text_guidance_extrapolates_and_keeps_the_norm(velocities, renorm) -> None:
    v, v_no_text, _ = velocities
    guided = combine(v, v_no_text, None, Guidance(4.0, renorm=renorm))
    direction = v_no_text + 4 * (v - v_no_text)
    torch.testing.assert_close(guided / norm(guided, renorm), direction / norm(direction, renorm))
    assert (norm(guided, renorm) <= norm(v, renorm) * (1 + 1e-5)).all()
    unlimited = combine(v, v_no_text, None, Guidance(4.0, renorm=renorm, renorm_min=1.0))
    torch.testing.assert_close(unlimited, direction)


@pytest.mark.parametrize("renorm", RENORMS)
def test_small_guided_velocities_are_not_blown_up(velocities, renorm) -> None:
    v, _, _ = velocities
    guided = combine(v, 1.2 * v, None, Guidance(3.0, renorm=renorm))
    torch.testing.assert_close(guided, 0.6 * v)


def test_renorm_is_limited_from_below(velocities) -> None:
    v, v_no_text, _ = velocities
    direction = v_no_text + 100 * (v - v_no_text)
    torch.testing.assert_close(combine(v, v_no_text, None, Guidance(100.0, renorm_min=0.6)), 0.6 * direction)


def test_image_guidance_comes_after_the_text_norm_only_for_text_channel(velocities) -> None:
    v, v_no_text, v_no_image = velocities
    text = v_no_text + 4 * (v - v_no_text)
    limited = text * (norm(v, "channel") / norm(text, "channel")).clamp(max=1)
    expected = v_no_image + 1.5 * (limited - v_no_image)
    torch.testing.assert_close(combine(*velocities, Guidance(4.0, 1.5, "text_channel")), expected)
    for renorm in ("global", "channel"):
        both = v_no_image + 1.5 * (text - v_no_image)
        scaled = both * (norm(v, renorm) / norm(both, renorm)).clamp(max=1)
        torch.testing.assert_close(combine(*velocities, Guidance(4.0, 1.5, renorm)), scaled)


@pytest.mark.parametrize("renorm", RENORMS)
def test_scales_of_each_image_act_on_it_alone(velocities, renorm) -> None:
    """Also scales that switch one image's guidance off, and the global norm."""
    v, v_no_text, v_no_image = velocities
    for text, image in itertools.product([4.0, 1.0], [1.5, 1.0]):
        scales = torch.tensor([text, 3.0]), torch.tensor([image, 2.0])
        together = combine(v, v_no_text, v_no_image, Guidance(4.0, 1.5, renorm), scales)
        for i in range(2):
            guidance = Guidance(float(scales[0][i]), float(scales[1][i]), renorm)
            rows = (x[i : i + 1] for x in velocities)
            torch.testing.assert_close(together[i : i + 1], combine(*rows, guidance))
        if text <= 1:
            torch.testing.assert_close(together[0], v[0])
        elif image <= 1:
            alone = combine(v[:1], v_no_text[:1], None, Guidance(text, renorm=renorm))
            torch.testing.assert_close(together[:1], alone)


def test_scales_up_to_one_are_off() -> None:
    for guidance, passes in (
        (Guidance(1.0, 4.0), 1),  # without text guidance there is none at all
        (Guidance(0.5), 1),
        (Guidance(4.0, 1.0), 2),
        (Guidance(4.0, 1.01), 3),
        (GENERATION, 2),
        (EDITING, 3),
    ):
        assert guidance.passes == passes
        assert guidance.active(0.7) == (passes > 1)


def test_the_interval_is_open_below_and_closed_above() -> None:
    guidance = Guidance(interval=(0.25, 0.75))
    assert [guidance.active(t) for t in (0.2, 0.25, 0.26, 0.75, 0.76)] == [False, False, True, True, False]
    assert EDITING.active(1e-3) and not PAPER_EDITING.active(0.4)


@pytest.mark.parametrize(
    ("settings", "message"), [({"renorm": "none"}, "choose global"), ({"renorm_min": 1.5}, "renorm_min is 1.5")]
)
def test_impossible_settings_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        Guidance(**settings)


def grid_and_noise(model: Bagel) -> tuple[LatentGrid, Tensor, Tensor]:
    grid = model.latent_grid([(h * STRIDE, w * STRIDE) for h, w in MIXED_SIZES])
    noise = Maker(1).noise(*grid.position_ids.shape, CONFIG.latent_token_dim)
    return grid, noise, torch.linspace(0.1, 1, len(MIXED_SIZES))


@pytest.mark.parametrize("renorm", RENORMS)
@torch.no_grad()
def test_guided_velocities_of_a_mixed_batch_are_those_of_its_samples(model: Bagel, renorm) -> None:
    """In one batched pass over all variants, images of different sizes, global norm included."""
    documents, guidance = mixed_documents(), Guidance(4.0, 1.5, renorm)
    grid, x_t, t = grid_and_noise(model)
    contexts = model.prefill_guided(documents, image=True)
    together = GuidedPass.of(contexts, grid, guidance).velocity(model, x_t, t, guidance)
    for i, (height, width) in enumerate(MIXED_SIZES):
        alone = model.latent_grid([(height * STRIDE, width * STRIDE)])
        guided = GuidedPass.of(model.prefill_guided([documents[i]], image=True), alone, guidance)
        v = guided.velocity(model, x_t[i : i + 1, : height * width], t[i : i + 1], guidance)
        torch.testing.assert_close(together[i, : height * width], v[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_batched_pass_equals_separate_passes(model: Bagel) -> None:
    grid, x_t, t = grid_and_noise(model)
    contexts = model.prefill_guided(mixed_documents(), image=True)
    assert contexts.no_text is not None and contexts.no_image is not None
    variants = (contexts.full, contexts.no_text, contexts.no_image)
    expected = combine(*(model.velocity(x_t, t, context, grid) for context in variants), EDITING)
    batched = GuidedPass.of(contexts, grid, EDITING).velocity(model, x_t, t, EDITING)
    torch.testing.assert_close(batched, expected, atol=1e-5, rtol=1e-5)
    off = Guidance(1.0)
    plain = GuidedPass.of(contexts, grid, off).velocity(model, x_t, t, off)
    torch.testing.assert_close(plain, model.velocity(x_t, t, contexts.full, grid))


@torch.no_grad()
def test_variants_that_were_not_prefilled_are_named(model: Bagel) -> None:
    grid = model.latent_grid([(8, 8)])
    with pytest.raises(ValueError, match="text guidance needs a context prefilled with text=True"):
        GuidedPass.of(model.prefill_guided([[]], text=False), grid, GENERATION)
    with pytest.raises(ValueError, match="image guidance needs a context prefilled with image=True"):
        GuidedPass.of(model.prefill_guided([[]]), grid, EDITING)


@torch.no_grad()
def test_variants_of_large_pictures_run_one_after_another_without_masks(model: Bagel, monkeypatch) -> None:
    """Where nothing but the lengths of contexts differs, which are then not padded to the longest."""
    make = Maker()
    documents = [[make.latent(2, 2), make.vit(8, 8), make.text(3)]] * 2
    grid = model.latent_grid([(2 * STRIDE, 2 * STRIDE)] * 2)
    x_t, t = make.noise(2, 4, CONFIG.latent_token_dim), torch.tensor([0.3, 0.8])
    contexts = model.prefill_guided(documents, image=True)
    batched = GuidedPass.of(contexts, grid, EDITING)
    monkeypatch.setattr("hyperbagel.flow.guidance.APART", 4)
    apart = GuidedPass.of(contexts, grid, EDITING)
    assert (len(batched.contexts), len(apart.contexts)) == (1, 3) and batched.variants == apart.variants == 3
    assert batched.contexts[0].valid is not None and all(context.valid is None for context in apart.contexts)
    velocities = [guided.velocity(model, x_t, t, EDITING) for guided in (batched, apart)]
    torch.testing.assert_close(*velocities, atol=1e-5, rtol=1e-5)
    padded = model.prefill_guided(mixed_documents(), image=True)
    sizes = model.latent_grid([(height * STRIDE, width * STRIDE) for height, width in MIXED_SIZES])
    assert len(GuidedPass.of(padded, sizes, EDITING).contexts) == 1  # has to be masked anyway
