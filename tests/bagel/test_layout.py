"""Where tokens go: rope positions of every kind of block, and input that no model could take."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from hyperbagel.bagel.layout import IGNORED, VIT_TOKEN
from hyperbagel.bagel.layout_builder import build_layout
from hyperbagel.bagel.segments import DroppedSegment, ImageSegment, LatentSegment, TextSegment, ViTSegment

from .tiny import CONFIG, Maker, tiny_model

MAKE = Maker()


def test_positions_tokens_and_labels() -> None:
    """Text moves on by each token, an image by one, a dropped image by one, a noisy image not at all."""
    answer = MAKE.text(2, loss=True)
    document = [MAKE.vit(4, 8), MAKE.text(1), DroppedSegment(), MAKE.latent(1, 2, loss=True), MAKE.latent(1, 2), answer]
    layout = build_layout([document], CONFIG)
    und, gen = layout.und, layout.gen
    assert und.position[0].tolist() == [0] * 4 + [1, 2, 3] + [5, 5] + [5, 5] + [6, 7, 8, 9]
    assert und.block[0].tolist() == [0] * 4 + [1] * 3 + [3, 3, 4, 4] + [5] * 4
    assert gen.position[0].tolist() == [5] * 4 and gen.block[0].tolist() == [3, 3, 4, 4]
    assert layout.ids[0].tolist()[:5] == [3, VIT_TOKEN, VIT_TOKEN, 4, 1]
    first, second = answer.ids.tolist()
    assert layout.labels[0].tolist() == [IGNORED] * 11 + [first, second, CONFIG.tokens.eos, IGNORED]
    assert layout.generated.tolist() == [[True, True, False, False]]
    assert layout.next_position.tolist() == [10]
    later = build_layout([document], CONFIG, start=torch.tensor([7]))
    assert (later.und.position - und.position == 7).all() and later.next_position.tolist() == [17]


def test_prefixes_of_answers_are_read_and_not_learnt() -> None:
    answer = TextSegment(torch.tensor([7, 8, 9]), loss=True, prefix=2)
    layout = build_layout([[answer]], CONFIG)
    assert layout.ids[0].tolist() == [CONFIG.tokens.bos, 7, 8, 9, CONFIG.tokens.eos]
    assert layout.labels[0].tolist() == [IGNORED, IGNORED, 9, CONFIG.tokens.eos, IGNORED]
    with pytest.raises(ValueError, match="3 ids cannot have a prefix of 4"):
        TextSegment(answer.ids, loss=True, prefix=4)


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (ViTSegment(torch.zeros(3, 6, 8)), "8x6 pixels: sides must be multiples of 4 and at most 32"),
        (ViTSegment(torch.zeros(3, 4, 36)), "36x4 pixels: .* at most 32"),
        (ViTSegment(torch.zeros(1, 4, 4)), r"\(1, 4, 4\): it must be \(3, height, width\)"),
        (LatentSegment(torch.zeros(4, 2, 3)), "12x8 pixels: sides must be multiples of 8"),
        (LatentSegment(torch.zeros(4, 2, 14)), "56x8 pixels: .* at most 48 pixels for this model's latent grid"),
        (LatentSegment(torch.zeros(4, 0, 2)), "8x0 pixels"),
        (LatentSegment(torch.zeros(8, 2, 2)), r"\(8, 2, 2\): it must have 4 channels"),
        (TextSegment(torch.tensor([5, 64])), "5 to 64 do not fit a vocabulary of 64"),
    ],
)
def test_segments_that_do_not_fit_the_model_are_refused(segment, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_layout([[MAKE.text(1), segment]], CONFIG)


@pytest.mark.parametrize("kind", [ViTSegment, ImageSegment, LatentSegment])
def test_images_of_the_wrong_type_are_refused(kind) -> None:
    for image, got in (
        (Image.new("RGB", (8, 8)), "got a Image"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"got torch.uint8 \(3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8), r"got torch.float32 \(1, 3, 8, 8\)"),
    ):
        with pytest.raises(TypeError, match=f"{kind.__name__} needs a float tensor .*{got}"):
            kind(image)


def test_texts_of_the_wrong_type_are_refused() -> None:
    for ids in ("a cat", [5, 6], torch.zeros(2), torch.zeros(1, 2, dtype=torch.long)):
        with pytest.raises(TypeError, match="int64 token ids"):
            TextSegment(ids)  # type: ignore[arg-type]


def test_misuse_of_documents_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(TypeError, match="encode images to latents first"):
        model.layout([[ImageSegment(torch.zeros(3, 8, 8))]])
    with pytest.raises(ValueError, match="must not contain images to be generated"):
        model.prefill([[MAKE.latent(1, 1, loss=True)]])
    with pytest.raises(ValueError, match="multiples of 4"):
        model.prefill([[ImageSegment(torch.zeros(3, 8, 10))]])
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        model.prefill([[ImageSegment(torch.zeros(1, 8, 8))]])
    for size in ((8, 10), (8, 12), (8, 56)):
        with pytest.raises(ValueError, match=f"{size[1]}x{size[0]} pixels: sides must be multiples of 8"):
            model.latent_grid([size])
