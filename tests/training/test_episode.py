"""From documents to contexts, targets, trajectories and the teacher's velocity."""

from __future__ import annotations

from dataclasses import replace

import torch

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE
from hyperbagel.bagel.segments import DocumentBatch, ImageSegment, Segment, TextSegment, ViTSegment
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION, GuidedPass
from hyperbagel.flow.sampler import Sampler
from hyperbagel.flow.schedule import timesteps
from hyperbagel.flow.trajectory import trajectory
from hyperbagel.modules.consistency.cfg_distillation import CFGDistillation
from hyperbagel.training.episode import Teacher, context_of, target_of
from tests.distillation import documents, episode_of, picture, text
from tests.nano import nano_bagel

SIZES = [(16, 16), (16, 32)]


def test_a_conversation_is_cut_at_its_last_image() -> None:
    """What BAGEL noised in earlier turns stays out, its clean copies and all texts stay in."""
    g = torch.Generator().manual_seed(0)
    source, first, second = (picture(g) for _ in range(3))
    clean: list[Segment] = [ImageSegment(source), ViTSegment(source), text(g)]
    again: list[Segment] = [ImageSegment(first), ViTSegment(first), text(g)]
    after = TextSegment(torch.tensor([7]), loss=True)
    last = ImageSegment(second, loss=True)
    document = [*clean, ImageSegment(first, loss=True), *again, last, after]
    assert context_of(document) == [*clean, *again] and target_of(document) is last
    assert target_of(clean) is None


def test_targets_are_the_encoded_images() -> None:
    model = nano_bagel()
    batch = documents(0, True, SIZES)
    tokens = episode_of(model, batch).x_0
    layout = model.layout(model.encode_documents(batch.documents))
    for row, (expected, generated) in enumerate(zip(layout.latents, layout.generated, strict=True)):
        kept = expected[generated]
        torch.testing.assert_close(tokens[row, : len(kept)], kept)
        assert tokens[row, len(kept) :].eq(0).all()


def test_image_scale_is_an_input_of_edits_only(nano_folder: str) -> None:
    rows = (documents(0, False, SIZES[:1]).documents[0], documents(1, True, SIZES[:1]).documents[0])
    batch = DocumentBatch(rows, ("a", "b"), ({}, {}))
    stage = CFGDistillation(model=nano_folder)
    episode = stage.begin(batch)
    assert episode.has_image.tolist() == [False, True]
    assert episode.contexts.no_image is not None
    text, image = episode.conditions[TEXT_SCALE], episode.conditions[IMAGE_SCALE]
    assert bool((text >= 1).all()) and image[0] == 0 and image[1] >= 1


def test_trajectory_is_the_samplers() -> None:
    model = nano_bagel()
    branch = model.generation.copy()
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    torch.nn.init.normal_(branch.get_parameter("text_scale_embedder.mlp.2.weight"))
    for editing in (False, True):
        guidance = PAPER_EDITING if editing else PAPER_GENERATION
        scales = torch.full((2,), guidance.text_scale), torch.full((2,), guidance.image_scale)
        episode = episode_of(model, documents(0, editing, SIZES), variants=True, scales=scales)
        with torch.no_grad():
            states = trajectory(episode.velocity(branch), episode.noise, timesteps(3, 3.0))
        sample = Sampler(3, 3.0, guidance).sample(model, episode.contexts, episode.grid, episode.noise, branch)
        torch.testing.assert_close(states, sample.trajectory)
        assert sample.nfe == 3


def test_teacher_guides_each_image_with_its_own_scale() -> None:
    """One batched call equals the guided velocity of every image alone; no guidance outside the interval."""
    model = nano_bagel()
    for editing in (False, True):
        guidance = PAPER_EDITING if editing else PAPER_GENERATION
        batch = documents(0, editing, SIZES)
        scales = torch.tensor([2.0, 4.5]), torch.tensor([1.2, 2.4])
        episode = episode_of(model, batch, variants=True, scales=scales)
        x_t, t = episode.noise, torch.tensor([0.9, 0.5 if not editing else 0.2])
        velocity = Teacher(None, PAPER_GENERATION, PAPER_EDITING).over(episode).velocity(x_t, t)
        for row in range(2):
            alone = episode_of(model, DocumentBatch((batch.documents[row],), ("x",), ({},)), variants=True)
            n = alone.grid.position_ids.shape[1]
            own = replace(guidance, text_scale=float(scales[0][row]), image_scale=float(scales[1][row]))
            own = own if editing else replace(own, image_scale=1.0)
            x, at = x_t[row : row + 1, :n], t[row : row + 1]
            with torch.no_grad():
                if own.active(float(t[row])):
                    expected = GuidedPass.of(alone.contexts, alone.grid, own).velocity(model, x, at, own)
                else:
                    expected = model.velocity(x, at, alone.contexts.full, alone.grid)
            torch.testing.assert_close(velocity[row : row + 1, :n], expected, atol=1e-5, rtol=1e-4)


def test_distilled_teacher_needs_one_pass_and_no_variants() -> None:
    model = nano_bagel()
    branch = model.generation.copy()
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    teacher = Teacher(branch, PAPER_GENERATION, PAPER_EDITING)
    assert not teacher.needs_variants
    scales = torch.tensor([2.0, 3.0]), torch.zeros(2)
    episode = episode_of(model, documents(0, False, SIZES), variants=teacher.needs_variants, scales=scales)
    assert episode.contexts.no_text is None
    x_t, t = episode.noise, torch.tensor([0.9, 0.5])
    velocity = teacher.over(episode).velocity(x_t, t)
    plain = model.velocity(x_t, t, episode.contexts.full, episode.grid)
    torch.testing.assert_close(velocity, plain)  # fresh embedders change nothing
