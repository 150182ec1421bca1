"""The Mask2Former detector on tiny random weights, and its score, box and size rules on numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from hyperbagel.evaluation.geneval.mask2former import (
    COCO_CLASSES,
    Mask2FormerDetector,
    detections_of,
    preprocess,
    restore,
    target_size,
)
from hyperbagel.evaluation.geneval.protocol import names_colors

from .golden import CASES, read_cases


def save_tiny(folder: Path, num_labels: int = 80) -> Path:
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32, num_queries=6,
        num_labels=num_labels,
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("mask2former"))


@pytest.fixture
def small_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are brought to 107 x 64 instead of 1333 x 800, to save time."""
    monkeypatch.setattr("hyperbagel.evaluation.geneval.mask2former.LONG_SIDE", 107)
    monkeypatch.setattr("hyperbagel.evaluation.geneval.mask2former.SHORT_SIDE", 64)


@pytest.mark.usefixtures("small_scale")
def test_detections_are_complete_whatever_the_batch(tiny: Path) -> None:
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((40, 60), (40, 60), (50, 30))]
    detector = Mask2FormerDetector(str(tiny), batch_size=2)
    assert not names_colors(detector)
    found = detector.detect(images)
    alone = [detector.detect([image])[0] for image in images]
    for image, one, other in zip(images, found, alone, strict=True):
        assert sum(len(boxes) for boxes in one.by_class.values()) == 100
        assert set(one.by_class) <= set(detector.classes)
        assert set(one.by_class) == set(other.by_class)
        for name, boxes in one.by_class.items():
            assert boxes.masks is not None
            assert boxes.masks.shape[1:] == image.shape[1:]
            assert (boxes.boxes >= 0).all()
            assert (boxes.boxes[:, 2] <= image.shape[2]).all()
            assert np.sort(boxes.scores) == pytest.approx(np.sort(other.by_class[name].scores), abs=1e-5)


def test_score_and_box_follow_the_original_rules() -> None:
    class_logits = torch.full((2, 81), -20.0)
    class_logits[0, COCO_CLASSES.index("dog")] = 0
    class_logits[0, 80] = 0  # "nothing": half of the probability
    class_logits[1, COCO_CLASSES.index("tv remote")] = 5
    mask_logits = torch.full((2, 8, 10), -3.0)
    mask_logits[0, 2:5, 3:9] = 1.0
    mask_logits[0, 2, 3] = 2.0
    found = detections_of(class_logits, mask_logits)
    (dog,) = np.flatnonzero(found["dog"].scores > 0.1)
    inside = (17 * torch.tensor(1.0).sigmoid() + torch.tensor(2.0).sigmoid()) / 18
    assert found["dog"].scores[dog] == pytest.approx(float(0.5 * inside), abs=1e-5)
    assert found["dog"].boxes[dog].tolist() == [3, 2, 9, 5]
    assert found["dog"].masks is not None
    assert found["dog"].masks[dog].sum() == 18
    # A query without a mask has no score, whatever its class.
    assert found["tv remote"].scores.max() < 1e-8
    assert found["tv remote"].boxes[found["tv remote"].scores.argmin()].tolist() == [0, 0, 0, 0]


def test_one_query_may_be_several_classes() -> None:
    found = detections_of(torch.zeros(1, 81), torch.ones(1, 4, 4))
    assert len(found.by_class) == 80
    assert all(len(boxes) == 1 for boxes in found.by_class.values())


@pytest.mark.parametrize(
    ("size", "expected"), [((1024, 1024), (800, 800)), ((512, 1024), (667, 1333)), ((4000, 1000), (1333, 333))]
)
def test_images_are_scaled_to_the_official_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert target_size(*size) == expected


@pytest.mark.usefixtures("small_scale")
def test_padding_is_right_and_below_and_is_taken_off_again() -> None:
    image = torch.full((1, 3, 40, 60), 255, dtype=torch.uint8)
    pixels, size = preprocess(image)
    assert size == (64, 96)
    pixels, size = preprocess(image[..., :30, :])
    assert (size, pixels.shape[-2:]) == ((54, 107), (64, 128))
    assert pixels[0, 0, 53, 106] == pytest.approx((255 - 123.675) / 58.395)
    assert pixels[0, :, 54:].abs().max() == 0
    masks = torch.zeros(1, 16, 32)
    masks[..., :14, :27] = 1
    assert restore(masks, (64, 128), size, (30, 60)).min() > 0.5


def test_class_names_are_those_of_the_benchmark() -> None:
    assert len(set(COCO_CLASSES)) == 80
    assert {"computer mouse", "tv remote", "computer keyboard"} <= set(COCO_CLASSES)
    named = {name for case in read_cases(CASES) for name in case["detections"]}
    assert named <= set(COCO_CLASSES)


def test_unfit_weights_are_refused(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(ValueError, match="has 7 classes"):
        Mask2FormerDetector(str(save_tiny(tmp_path / "seven", num_labels=7)))
    network = Mask2FormerForUniversalSegmentation.from_pretrained(tiny)
    state = {key: value for key, value in network.state_dict().items() if "class_predictor" not in key}
    network.save_pretrained(tmp_path / "gap", state_dict=state)
    with pytest.raises(ValueError, match="weights lack 2 keys"):
        Mask2FormerDetector(str(tmp_path / "gap"))
