"""The CLIP colour classifier on tiny random weights, and its crop rules pixel by pixel."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from hyperbagel.evaluation.geneval.clip_colors import CLIPColorClassifier, crop
from hyperbagel.evaluation.geneval.protocol import ClassDetections, names_colors

open_clip = pytest.importorskip("open_clip")
MODEL = "tiny-clip-for-tests"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a tiny CLIP that open_clip knows by name."""
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (folder / f"{MODEL}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    save_file(open_clip.create_model(MODEL).state_dict(), folder / "clip.safetensors")
    return folder / "clip.safetensors"


def found(boxes: Sequence[Sequence[float]], masks: np.ndarray | None = None) -> ClassDetections:
    return ClassDetections(np.array(boxes, np.float32), np.ones(len(boxes), np.float32), masks)


def test_the_colour_is_that_of_the_nearest_averaged_sentence(weights: Path) -> None:
    classifier = CLIPColorClassifier(MODEL, str(weights))
    assert names_colors(classifier)
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    objects = found(
        [[2, 3, 40, 44], [30.4, 0, 69, 20], [0, 0, 10, 50]], np.random.default_rng(0).random((3, 50, 70)) > 0.3
    )
    colors = classifier.classify(image, "dog", objects)

    network = open_clip.create_model(MODEL, pretrained=str(weights), force_quick_gelu=True).eval()
    transform = open_clip.image_transform(32, is_train=False)
    assert objects.masks is not None
    with torch.no_grad():
        pictures = [transform(crop(image, box, mask)) for box, mask in zip(objects.boxes, objects.masks, strict=True)]
        features = F.normalize(network.encode_image(torch.stack(pictures)), dim=-1)
        for feature, color in zip(features, colors, strict=True):
            products = []
            for name in classifier.colors:
                texts = [f"a photo of a {name} dog", f"a photo of a {name}-colored dog", f"a photo of a {name} object"]
                sentences = F.normalize(network.encode_text(open_clip.tokenize(texts)), dim=-1)
                products.append(float(feature @ F.normalize(sentences.mean(0), dim=-1)))
            assert color == classifier.colors[int(np.argmax(products))]


def test_the_class_name_takes_part_and_nothing_found_needs_no_network(weights: Path) -> None:
    classifier = CLIPColorClassifier(MODEL, str(weights))
    assert classifier.classify(torch.zeros(3, 8, 8, dtype=torch.uint8), "dog", found([])) == []
    with torch.no_grad():
        assert not torch.allclose(classifier._directions("dog"), classifier._directions("traffic light"))


def test_quick_gelu_is_really_used(weights: Path) -> None:
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        quick, plain = (
            CLIPColorClassifier(MODEL, str(weights), quick_gelu=choice).network.encode_image(pixels)
            for choice in (True, False)
        )
    assert not torch.allclose(quick, plain, atol=1e-4)


def test_weights_that_need_another_activation_are_refused() -> None:
    with pytest.raises(ValueError, match="trained with quick_gelu=True"):
        CLIPColorClassifier("ViT-L-14", "openai", quick_gelu=False)
    with pytest.raises(ValueError, match="trained with quick_gelu=False"):
        CLIPColorClassifier("ViT-L-14", "laion2b_s32b_b82k")


def test_crop_follows_mask_box_and_rounding() -> None:
    image = torch.arange(3 * 6 * 8, dtype=torch.uint8).view(3, 6, 8)
    pixels = image.permute(1, 2, 0).numpy()
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:6] = True
    # 2.5 rounds to 2 and 3.5 to 4: half to even.
    seen = np.asarray(crop(image, np.array([2.5, 1.4, 6.5, 3.5], np.float32), mask))
    assert seen.shape == (3, 4, 3)
    assert (seen[0] == 153).all()
    assert (seen[1:, 1:] == pixels[2:4, 3:6]).all()
    assert (seen[1:, 0] == 153).all()
    # Without a mask the surroundings stay; beyond the image it is black.
    beyond = np.asarray(crop(image, np.array([6, -1, 10, 2], np.float32), None))
    assert (beyond[0] == 0).all()
    assert (beyond[:, 2:] == 0).all()
    assert (beyond[1:, :2] == pixels[0:2, 6:8]).all()
    assert crop(image, np.zeros(4, np.float32), mask).size == (1, 1)
