"""Batching, caching and cutting documents in pieces change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperbagel.bagel.context import Context, GuidedContext
from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, ImageSegment, LatentSegment, TextSegment
from hyperbagel.bagel.vision import patchify

from .tiny import CONFIG, MIXED_SIZES, STRIDE, Maker, mixed_documents, tiny_model


@pytest.fixture(scope="module")
def model() -> Bagel:
    return tiny_model()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def grid_of(model: Bagel, sizes: list[tuple[int, int]]) -> LatentGrid:
    return model.latent_grid([(h * STRIDE, w * STRIDE) for h, w in sizes])


def noise_for(grid: LatentGrid) -> tuple[Tensor, Tensor]:
    """Noisy tokens, garbage at padding, and a time for each image."""
    make = Maker(7)
    shape = grid.position_ids.shape
    return make.noise(*shape, CONFIG.latent_token_dim), torch.linspace(0.05, 1, shape[0])


def velocities(model: Bagel, context: Context, sizes: list[tuple[int, int]]) -> Tensor:
    grid = grid_of(model, sizes)
    return model.velocity(*noise_for(grid), context, grid)


def test_velocities_of_a_mixed_batch_are_those_of_its_samples(model: Bagel) -> None:
    documents, grid = mixed_documents(), grid_of(model, MIXED_SIZES)
    x_t, t = noise_for(grid)
    together = model.velocity(x_t, t, model.prefill(documents), grid)
    for i, (document, size) in enumerate(zip(documents, MIXED_SIZES, strict=True)):
        tokens, alone = size[0] * size[1], grid_of(model, [size])
        v = model.velocity(x_t[i : i + 1, :tokens], t[i : i + 1], model.prefill([document]), alone)
        close(together[i, :tokens], v[0])
        assert not together[i, tokens:].any()


def test_guidance_variants_of_a_mixed_batch_are_those_of_its_samples(model: Bagel) -> None:
    documents = mixed_documents()
    together = model.prefill_guided(documents, text=True, image=True)
    for name in ("full", "no_text", "no_image"):
        batch = velocities(model, getattr(together, name), [(2, 2)] * len(documents))
        for i, document in enumerate(documents):
            alone: GuidedContext = model.prefill_guided([document], text=True, image=True)
            grid = grid_of(model, [(2, 2)] * len(documents))
            x_t, t = noise_for(grid)
            v = model.velocity(x_t[i : i + 1], t[i : i + 1], getattr(alone, name), grid_of(model, [(2, 2)]))
            close(batch[i], v[0])


def test_guidance_variants_are_the_contexts_they_stand_for(model: Bagel) -> None:
    """No text: the state before the last text, or the whole document when an image follows; no image: all texts."""
    documents = mixed_documents()
    guided = model.prefill_guided(documents, text=True, image=True)

    def without_last_text(document: Document) -> Document:
        return document[:-1] if document and isinstance(document[-1], TextSegment) else document

    sizes = [(2, 2)] * len(documents)
    assert guided.no_text is not None and guided.no_image is not None
    no_text = model.prefill([without_last_text(document) for document in documents])
    no_image = model.prefill([[s for s in document if isinstance(s, TextSegment)] for document in documents])
    for got, expected in ((guided.no_text, no_text), (guided.no_image, no_image)):
        assert got.next_position.tolist() == expected.next_position.tolist()
        assert got.valid_mask().sum(1).tolist() == expected.valid_mask().sum(1).tolist()
        close(velocities(model, got, sizes), velocities(model, expected, sizes))


def test_hidden_states_of_all_layers_do_not_depend_on_the_batch(model: Bagel) -> None:
    documents = mixed_documents()
    layout = model.layout(documents)
    together = model.run(layout, record_layers=True)
    assert len(together.layers) == CONFIG.llm.num_hidden_layers + 1
    for i, document in enumerate(documents):
        for batch, alone in zip(
            together.layers, model.run(model.layout([document]), record_layers=True).layers, strict=True
        ):
            close(batch.und[i, layout.und.block[i] >= 0], alone.und[0])
            close(batch.gen[i, layout.gen.block[i] >= 0], alone.gen[0])


@pytest.mark.parametrize("cut", [0, 1, 2, 6])
def test_prefill_in_pieces_is_one_prefill(model: Bagel, cut: int) -> None:
    """Pieces of different lengths, so that padding ends up in the middle of the cache."""
    documents = mixed_documents()
    whole = model.prefill(documents)
    pieces = model.prefill([d[cut:] for d in documents], model.prefill([d[:cut] for d in documents]))
    assert pieces.next_position.tolist() == whole.next_position.tolist()
    assert pieces.valid_mask().sum(1).tolist() == whole.valid_mask().sum(1).tolist()
    close(velocities(model, pieces, MIXED_SIZES), velocities(model, whole, MIXED_SIZES))


def test_cached_denoising_is_the_uncached_forward(model: Bagel) -> None:
    make, documents = Maker(3), mixed_documents()
    targets = [make.latent(*size, loss=True) for size in MIXED_SIZES]
    layout = model.layout([[*document, target] for document, target in zip(documents, targets, strict=True)])
    grid = grid_of(model, MIXED_SIZES)
    x_t, t = noise_for(grid)
    noisy, times = layout.latents.clone(), torch.zeros(layout.image.shape)
    for i, (height, width) in enumerate(MIXED_SIZES):
        here = layout.generated[i]
        noisy[i, here], times[i, here] = x_t[i, : height * width], t[i]
    uncached = model(layout, noisy, times)
    cached = model.velocity(x_t, t, model.prefill(documents), grid)
    for i, (height, width) in enumerate(MIXED_SIZES):
        close(cached[i, : height * width], uncached.velocity[i, layout.generated[i]])


def test_nothing_later_sees_a_noisy_image(model: Bagel) -> None:
    make = Maker(4)
    context, later = make.text(3), [make.latent(2, 2), make.vit(8, 8), make.text(4)]
    with_noise, without = (
        model.layout([[context, make.latent(2, 2, loss=True), *later]]),
        model.layout([[context, *later]]),
    )
    clean = without.latents
    expected = model(without, clean, torch.zeros(1, 4)).und[0, without.und.block[0] >= 1]
    for noise in make.noise(2, 1, 4, CONFIG.latent_token_dim):
        output = model(with_noise, torch.cat([noise, clean], 1), torch.tensor([[0.6] * 4 + [0.0] * 4]))
        close(output.und[0, with_noise.und.block[0] >= 2], expected)


def test_images_are_encoded_one_by_one(model: Bagel) -> None:
    make = Maker(5)
    sizes = [(8, 16), (16, 8), (8, 16), (24, 24)]
    images, noise = [make.pixels(*size) for size in sizes], [make.noise(4, h // 4, w // 4) for h, w in sizes]
    for eps in (None, noise):
        together = model.encode(images, eps)
        for i, image in enumerate(images):
            close(together[i], model.encode([image], None if eps is None else [eps[i]])[0])
    documents = [[ImageSegment(images[0], loss=True)], [], [make.text(1), ImageSegment(images[3])]]
    first, empty, last = model.encode_documents(documents)
    assert isinstance(first[0], LatentSegment) and first[0].loss and not empty
    assert isinstance(last[1], LatentSegment) and not last[1].loss
    close(last[1].latent, model.encode([images[3]])[0])
    grid = grid_of(model, [(1, 2), (2, 1), (1, 2)])
    tokens = torch.stack([patchify(latent, 2) for latent in model.encode(images[:3])])
    for picture, latent in zip(model.decode_latents(tokens, grid), model.encode(images[:3]), strict=True):
        close(picture, model.autoencoder.decode(latent[None])[0])


def test_contexts_can_be_selected_repeated_and_stacked(model: Bagel) -> None:
    documents = mixed_documents()
    guided = model.prefill_guided(documents)
    sizes = [(2, 2)] * 3
    index = torch.tensor([3, 0, 3])
    expected = model.prefill([documents[i] for i in index.tolist()])
    close(velocities(model, guided.rows(index).full, sizes), velocities(model, expected, sizes))
    stacked = Context.stack([model.prefill(documents[:1]), model.prefill([[]]), model.prefill(documents[3:4])])
    alone = model.prefill([documents[0], [], documents[3]])
    close(velocities(model, stacked, sizes), velocities(model, alone, sizes))
