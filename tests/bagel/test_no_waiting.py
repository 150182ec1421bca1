"""Nothing waits for a device from documents to pictures, or to the first round of answers: everything of a GPU's work
but the GPU, as in `tests.training.test_no_waiting`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from hyperbagel.bagel.segments import Document, ImageSegment, Segment, TextSegment
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.speculative import SpeculationSettings, Speculator
from hyperbagel.decoding.speculative_loop import DecodingRun
from hyperbagel.decoding.static import rounds_for
from hyperbagel.flow import guidance
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION, Guidance, GuidedPass
from hyperbagel.flow.sampler import Sampler
from hyperbagel.pipeline.painter import seeded_noise
from tests.bagel.tiny import CONFIG, STRIDE, Maker, mixed_documents, tiny_model
from tests.decoding.drafting import documents as questions
from tests.decoding.drafting import draft, target
from tests.training.test_no_waiting import META, DrawnThere, NoWaiting

MAKE = Maker()
EDIT: Document = [ImageSegment(MAKE.pixels(16, 24)), MAKE.vit(8, 12), MAKE.text(4)]


def there(documents: Sequence[Document]) -> list[list[Segment]]:
    """Documents whose pictures are on the device, as who draws brings them there."""

    def moved(segment: Segment) -> Segment:
        values = {name: getattr(segment, name) for name in ("pixels", "latent") if hasattr(segment, name)}
        at = {name: value.to(META) for name, value in values.items() if value is not None}
        return segment if isinstance(segment, TextSegment) else replace(segment, **at)

    return [[moved(segment) for segment in document] for document in documents]


@pytest.mark.parametrize(
    ("documents", "by"),
    [([[MAKE.text(5)]], PAPER_GENERATION), ([EDIT], PAPER_EDITING), ([*mixed_documents(), EDIT], PAPER_EDITING)],
)
@pytest.mark.parametrize("apart", [1, 2048])
@torch.no_grad()
def test_reading_and_drawing(
    documents: list[Document], by: Guidance, apart: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for whether latents are numbers, which is looked at behind the last step. apart: also where variants run by
    themselves."""
    monkeypatch.setattr(guidance, "APART", apart)
    monkeypatch.setattr(Sampler, "_check", lambda *_: None)
    model, sampler, given = tiny_model().to(META), Sampler(2, 3.0, by), there(documents)
    with DrawnThere(), NoWaiting():
        contexts = sampler.read(model, given)
        grid = model.latent_grid([(2 * STRIDE, 3 * STRIDE)] * len(documents))
        assert len(GuidedPass.of(contexts, grid, by).contexts) == (1 if apart > 1 or len(documents) > 1 else by.passes)
        noise = seeded_noise(grid, range(len(documents)), CONFIG.latent_token_dim)
        sample = sampler.sample(model, contexts, grid, noise.to(META, non_blocking=True))
        assert len(model.decode_latents(sample.latents, grid)) == len(documents)


@pytest.mark.parametrize("count", [1, 5])
@torch.no_grad()
def test_reading_questions(count: int) -> None:
    """And all that begins to answer them; of rounds, those that are all alike look at nothing, others decide by it."""
    model, head = (copy.deepcopy(part).to(META) for part in (target(), draft("hyper", False)))
    speculator = Speculator(model, head, SpeculationSettings(3))
    settings, bos = DecodingSettings(4, stop=()), model.config.tokens.bos
    first, second = there(questions(count)), there(questions(count, seed=1))
    with DrawnThere(), NoWaiting():
        context = speculator.prefill(first)
        later = speculator.prefill(second, context)  # a second turn
        engine = speculator.engine(settings)
        run = DecodingRun(engine, later, settings, None, [bos])
    with pytest.raises((RuntimeError, NotImplementedError)):
        run.round()
    rounds = rounds_for(engine, later, settings, 1)
    with DrawnThere(), NoWaiting():
        rounds.begin(later, [bos])
        rounds.round()


@torch.no_grad()
def test_what_is_known_of_a_context_is_what_its_device_says() -> None:
    """Of all its variants, after all that makes contexts of contexts."""
    model, documents = tiny_model(), mixed_documents()
    guided = model.prefill_guided(documents, image=True)
    assert guided.no_text is not None and guided.no_image is not None
    contexts = [guided.full, guided.no_text, guided.no_image, guided.no_text.dense()]
    contexts += [model.prefill(documents[::-1], guided.full), model.prefill(documents[:1])]
    for context in contexts:
        assert context.known is not None
        assert torch.equal(context.known.valid, context.valid_mask())
        assert torch.equal(context.known.next_position, context.next_position)
    rows = guided.full.rows(torch.tensor([3, 0]))
    assert rows.known is None and torch.equal(rows.seen, rows.valid_mask())
