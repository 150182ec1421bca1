"""The published GenEval detector: Mask2Former on COCO instances, with the score and box rules of its original code."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Mask2FormerForUniversalSegmentation

from hyperbagel.evaluation.geneval.protocol import ClassDetections, Detections

# fmt: off
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock",
    "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
"""The 80 COCO things in COCO order under their GenEval names (mouse, remote and keyboard are renamed)."""

LONG_SIDE, SHORT_SIDE = 1333, 800
MOST_DETECTIONS = 100
_SIZE_DIVISOR = 32
_MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
_STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)


class Mask2FormerDetector:
    """Detects COCO objects with a Mask2Former of the transformers library, with their masks.

    Published figures used mmdetection's Swin-S weights: never compare them with another detector's.

    Args:
        model: local folder or hub name; safetensors only.
        device: torch device that computes.
        batch_size: pictures looked at together.

    Raises ValueError when the weights are incomplete or not of 80 classes.

    Examples:
        >>> len(Mask2FormerDetector.classes)
        80
    """

    classes: tuple[str, ...] = COCO_CLASSES

    def __init__(
        self,
        model: str = "facebook/mask2former-swin-small-coco-instance",
        device: torch.device | str = "cpu",
        batch_size: int = 1,
    ) -> None:
        network, info = Mask2FormerForUniversalSegmentation.from_pretrained(
            model, use_safetensors=True, output_loading_info=True
        )
        if info["missing_keys"]:
            raise ValueError(
                f"{model}: weights lack {len(info['missing_keys'])} keys, {min(info['missing_keys'])} first"
            )
        if network.config.num_labels != len(COCO_CLASSES):
            raise ValueError(
                f"{model}: has {network.config.num_labels} classes; GenEval needs the 80 things of COCO instances"
            )
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        self.batch_size = batch_size

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """At most 100 detections over all classes in each image (3, H, W) uint8, not sorted by score."""
        found = []
        for _, alike in groupby(images, key=lambda image: image.shape):
            group = list(alike)
            for start in range(0, len(group), self.batch_size):
                found += self._detect(torch.stack(group[start : start + self.batch_size]))
        return found

    def _detect(self, images: Tensor) -> list[Detections]:
        """Detections in images (B, 3, H, W) uint8 of one size."""
        pixels, size = preprocess(images.to(self.device))
        output = self.network(pixel_values=pixels)
        return [
            detections_of(logits, restore(masks, pixels.shape[-2:], size, images.shape[-2:]))
            for logits, masks in zip(output.class_queries_logits, output.masks_queries_logits, strict=True)
        ]


def target_size(height: int, width: int) -> tuple[int, int]:
    """Height and width scaled, keeping the shape, until the long side is 1333 or the short side 800."""
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def preprocess(images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Resize, normalise and pad (B, 3, H, W) uint8 to whole multiples of 32; also the size before the padding."""
    height, width = target_size(*images.shape[-2:])
    resized = F.interpolate(images.float(), (height, width), mode="bilinear", align_corners=False)
    normal = (resized.round() - _MEAN.to(images.device)) / _STD.to(images.device)
    return F.pad(normal, (0, -width % _SIZE_DIVISOR, 0, -height % _SIZE_DIVISOR)), (height, width)


def restore(masks: Tensor, padded: Sequence[int], size: tuple[int, int], original: Sequence[int]) -> Tensor:
    """Mask logits (Q, h, w) at the original size (Q, H, W): up to the network's input, padding off, down to H, W."""
    large = F.interpolate(masks[None].float(), tuple(padded), mode="bilinear", align_corners=False)
    return F.interpolate(
        large[..., : size[0], : size[1]], tuple(original), mode="bilinear", align_corners=False
    )[0]  # fmt: skip


def detections_of(class_logits: Tensor, mask_logits: Tensor) -> Detections:
    """The best 100 (query, class) pairs of one image as detections.

    class_logits: (Q, classes + 1), the last one "nothing"; mask_logits: (Q, H, W) at image size. Score: class
    probability times the mean mask probability inside the mask (logit > 0); box: the mask's bounds, last pixel + 1.
    """
    probability = class_logits.float().softmax(-1)[:, :-1]
    best = probability.flatten().topk(min(MOST_DETECTIONS, probability.numel()), sorted=False)
    query, label = best.indices // probability.shape[1], best.indices % probability.shape[1]
    inside = mask_logits > 0
    certainty = (mask_logits.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    scores = (best.values * certainty[query]).cpu().numpy()
    boxes = _bounds(inside)[query.cpu().numpy()]
    masks, queries, labels = inside.cpu().numpy(), query.cpu().numpy(), label.cpu().numpy()
    found = {}
    for index in np.unique(labels):
        own = labels == index
        found[COCO_CLASSES[index]] = ClassDetections(boxes[own], scores[own], masks[queries[own]])
    return Detections(found)


def _bounds(masks: Tensor) -> np.ndarray:
    """Tight boxes (n, 4) of masks (n, H, W), right and bottom exclusive; zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4), np.float32)
    columns, rows = masks.any(1).cpu().numpy(), masks.any(2).cpu().numpy()
    for box, column, row in zip(boxes, columns, rows, strict=True):
        if column.any():
            (x,), (y,) = np.nonzero(column), np.nonzero(row)
            box[:] = x[0], y[0], x[-1] + 1, y[-1] + 1
    return boxes
