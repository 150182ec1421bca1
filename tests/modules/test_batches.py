"""From documents to contexts, targets, trajectories and the teacher's velocity."""

from __future__ import annotations

from dataclasses import replace

import torch

from hyperbagel.bagel.branch import GuidanceScales
from hyperbagel.bagel.segments import DocumentBatch, ImageSegment, Segment, TextSegment, ViTSegment
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION
from hyperbagel.flow.sampler import Sampler
from hyperbagel.flow.schedule import timesteps
from hyperbagel.training.episode import (
    Teacher,
    branch_velocity,
    prepare,
    split_document,
    target_tokens,
    trajectory,
)
from tests.nano import nano_bagel

from .distillation import documents, picture, text

SIZES = [(16, 16), (16, 32)]


def test_a_conversation_is_cut_at_its_last_image() -> None:
    """What BAGEL noised in earlier turns stays out, its clean copies and all texts stay in."""
    g = torch.Generator().manual_seed(0)
    source, first, second = (picture(g) for _ in range(3))
    clean: list[Segment] = [ImageSegment(source), ViTSegment(source), text(g)]
    again: list[Segment] = [ImageSegment(first), ViTSegment(first), text(g)]
    after = TextSegment(torch.tensor([7]), loss=True)
    document = [*clean, ImageSegment(first, loss=True), *again, ImageSegment(second, loss=True), after]
    split = split_document(document)
    assert split is not None
    context, target = split
    assert context == [*clean, *again] and target is second
    assert split_document(clean) is None


def test_targets_are_the_encoded_images() -> None:
    model = nano_bagel()
    batch = documents(0, True, SIZES)
    tokens = target_tokens(model, prepare(model, batch, variants=False))
    layout = model.layout(model.encode_documents(batch.documents))
    for row, (expected, generated) in enumerate(zip(layout.latents, layout.generated, strict=True)):
        kept = expected[generated]
        torch.testing.assert_close(tokens[row, : len(kept)], kept)
        assert tokens[row, len(kept) :].eq(0).all()


def test_image_scale_is_an_input_of_edits_only() -> None:
    model = nano_bagel()
    rows = (documents(0, False, SIZES[:1]).documents[0], documents(1, True, SIZES[:1]).documents[0])
    prepared = prepare(model, DocumentBatch(rows, ("a", "b"), ({}, {})), variants=True)
    assert prepared.has_image.tolist() == [False, True]
    assert prepared.contexts.no_image is not None
    scales = prepared.scales(torch.tensor([2.0, 3.0]), torch.tensor([1.5, 2.0]))
    assert scales.text.tolist() == [2.0, 3.0] and scales.image.tolist() == [0.0, 2.0]


def test_trajectory_is_the_samplers() -> None:
    model = nano_bagel()
    branch = model.generation.copy()
    branch.add_guidance_embedders()
    torch.nn.init.normal_(branch.text_scale_embedder.mlp[2].weight)  # type: ignore[union-attr]
    for editing in (False, True):
        prepared = prepare(model, documents(0, editing, SIZES), variants=True)
        noise = torch.randn(2, 8, model.config.latent_token_dim, generator=torch.Generator().manual_seed(0))
        guidance = PAPER_EDITING if editing else PAPER_GENERATION
        full = torch.full((2,), 1.0)
        scales = prepared.scales(guidance.text_scale * full, guidance.image_scale * full)
        states = trajectory(branch_velocity(model, prepared, branch, scales), noise, timesteps(3, 3.0))
        with torch.no_grad():
            sample = Sampler(3, 3.0, guidance).sample(model, prepared.contexts, prepared.grid, noise, branch)
        torch.testing.assert_close(states, sample.trajectory)
        assert sample.nfe == 3


def test_teacher_guides_each_image_with_its_own_scale() -> None:
    """One batched call equals the guided velocity of every image alone; no guidance outside the interval."""
    model = nano_bagel()
    for editing in (False, True):
        guidance = PAPER_EDITING if editing else PAPER_GENERATION
        batch = documents(0, editing, SIZES)
        prepared = prepare(model, batch, variants=True)
        g = torch.Generator().manual_seed(0)
        x_t = torch.randn(2, 8, model.config.latent_token_dim, generator=g)
        t = torch.tensor([0.9, 0.5 if not editing else 0.2])
        scales = prepared.scales(torch.tensor([2.0, 4.5]), torch.tensor([1.2, 2.4]))
        velocity = Teacher(None, PAPER_GENERATION, PAPER_EDITING).bind(model, prepared, scales).velocity(x_t, t)
        for row in range(2):
            alone = prepare(model, DocumentBatch((batch.documents[row],), ("x",), ({},)), variants=True)
            n = alone.grid.position_ids.shape[1]
            own = replace(guidance, text_scale=float(scales.text[row]), image_scale=float(scales.image[row]) or 1.0)
            contexts, grid, x = alone.contexts, alone.grid, x_t[row : row + 1, :n]
            with torch.no_grad():
                if own.active(float(t[row])):
                    from hyperbagel.flow.guidance import GuidedPass

                    expected = GuidedPass.of(contexts, grid, own).velocity(model, x, t[row : row + 1], own)
                else:
                    expected = model.velocity(x, t[row : row + 1], contexts.full, grid)
            torch.testing.assert_close(velocity[row : row + 1, :n], expected, atol=1e-5, rtol=1e-4)


def test_distilled_teacher_needs_one_pass_and_no_variants() -> None:
    model = nano_bagel()
    branch = model.generation.copy()
    branch.add_guidance_embedders()
    teacher = Teacher(branch, PAPER_GENERATION, PAPER_EDITING)
    assert not teacher.needs_variants
    prepared = prepare(model, documents(0, False, SIZES), variants=teacher.needs_variants)
    assert prepared.contexts.no_text is None
    x_t, t = torch.randn(2, 8, model.config.latent_token_dim), torch.tensor([0.9, 0.5])
    scales = GuidanceScales(torch.tensor([2.0, 3.0]), torch.zeros(2))
    velocity = teacher.bind(model, prepared, scales).velocity(x_t, t)
    plain = model.velocity(x_t, t, prepared.contexts.full, prepared.grid)
    torch.testing.assert_close(velocity, plain)  # fresh embedders change nothing
