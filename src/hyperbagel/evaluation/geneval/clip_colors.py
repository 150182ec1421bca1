"""The published GenEval colour classifier: CLIP zero-shot on the masked and cropped object."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hyperbagel.bagel.finite import require_finite
from hyperbagel.evaluation.geneval.prompts import COLORS
from hyperbagel.evaluation.geneval.protocol import ClassDetections

BACKGROUND = (153, 153, 153)
# Always "a", even before "orange", and the object's class name: the sentences decide, so they stay as published.
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")


class CLIPColorClassifier:
    """Names the colour of an object with an open_clip model.

    Args:
        model: name of the network, as open_clip takes it.
        pretrained: name of its weights or a weights file, as open_clip takes them.
        quick_gelu: whether the weights need QuickGELU, as OpenAI's do.
        device: torch device that computes.

    Raises ValueError when `quick_gelu` contradicts what open_clip knows of the weights, for the features would be
    wrong, and ImportError without open_clip.

    Examples:
        >>> CLIPColorClassifier(quick_gelu=False)
        Traceback (most recent call last):
        ...
        ValueError: open_clip's ViT-L-14 / openai was trained with quick_gelu=True
    """

    colors: tuple[str, ...] = COLORS

    def __init__(
        self,
        model: str = "ViT-L-14",
        pretrained: str | None = "openai",
        quick_gelu: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        import open_clip  # slow to import

        known = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else {}
        if known and bool(known.get("quick_gelu", False)) != quick_gelu:
            raise ValueError(f"open_clip's {model} / {pretrained} was trained with quick_gelu={not quick_gelu}")
        network, _, transform = open_clip.create_model_and_transforms(
            model, pretrained=pretrained, force_quick_gelu=quick_gelu, require_pretrained=True, device=device
        )
        self.network = network.eval()
        self.transform = transform
        self.tokenizer = open_clip.get_tokenizer(model)
        self.device = torch.device(device)
        self._directions = lru_cache(maxsize=None)(self._encode_colors)

    @torch.no_grad()
    def classify(self, image: Tensor, class_name: str, found: ClassDetections) -> list[str]:
        """The most likely of the ten colours for each of `found` in `image` (3, H, W) uint8; ties go to the earlier."""
        if not len(found):
            return []
        masks: Sequence[npt.NDArray[np.bool_] | None] = (
            [None] * len(found) if found.masks is None else list(found.masks)
        )
        crops = [crop(image, box, mask) for box, mask in zip(found.boxes, masks, strict=True)]
        pixels = torch.stack([self.transform(picture) for picture in crops]).to(self.device)
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            features = F.normalize(self.network.encode_image(pixels), dim=-1)
            likeness = features @ self._directions(class_name).T
        require_finite(likeness, f"CLIP's likeness of {class_name!r} to colours")
        return [self.colors[index] for index in likeness.float().cpu().numpy().argmax(1)]

    def _encode_colors(self, class_name: str) -> Tensor:
        """One unit vector a colour: (10, width)."""
        sentences = [template.format(color=color, name=class_name) for color in self.colors for template in TEMPLATES]
        features = F.normalize(self.network.encode_text(self.tokenizer(sentences).to(self.device)), dim=-1)
        return F.normalize(features.view(len(self.colors), len(TEMPLATES), -1).mean(1), dim=-1)


def crop(image: Tensor, box: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_] | None) -> Image.Image:
    """What the classifier sees of an object: grey outside of its mask, cut to its box, black beyond the image.

    image: (3, H, W) uint8; box: (4,), rounded half to even; mask: (H, W), or None to keep the surroundings.
    """
    pixels = image.permute(1, 2, 0).cpu().numpy()
    if mask is not None:
        pixels = np.where(mask[..., None], pixels, np.array(BACKGROUND, np.uint8))
    left, top, right, bottom = (round(float(corner)) for corner in box)
    return Image.fromarray(pixels).crop((left, top, max(right, left + 1), max(bottom, top + 1)))
