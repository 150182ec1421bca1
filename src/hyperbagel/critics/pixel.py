"""The pixel discriminator: heads on a frozen, pretrained vision encoder that looks at decoded images."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from hyperbagel.bagel.differentiable_resize import encoder_views, resized
from hyperbagel.bagel.grid import grid_ids
from hyperbagel.bagel.groups import padded
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.transfer import moved
from hyperbagel.bagel.vision import patches_of
from hyperbagel.critics.heads import HeadStack
from hyperbagel.critics.latent import CriticSettings


class FeatureMaps(NamedTuple):
    """Features of B images: one (B, n, D) for each tapped layer, raster order, padded last; sizes (h, w) of each."""

    layers: list[Tensor]
    sizes: list[tuple[int, int]]


class VisionFeatures(nn.Module, ABC):
    """A frozen vision encoder. `attach` is called once, before `channels` and `depth` are read."""

    channels: int
    depth: int

    def attach(self, model: Bagel) -> None:
        """Take what is needed from the model that draws the pictures; it is not kept as a submodule."""

    @abstractmethod
    def features(self, pictures: Sequence[Tensor], layers: Sequence[int]) -> FeatureMaps:
        """Features after the given layers (from 1) of pictures (3, H, W) in about [-1, 1]; differentiable."""

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: the encoder is frozen."""
        return super().train(False)


class BagelViTFeatures(VisionFeatures):
    """BAGEL's own vision tower: no further weights.

    Examples:
        >>> features = BagelViTFeatures()
        >>> features.attach(model)
        >>> maps = features.features([torch.zeros(3, 32, 32)], layers=[1])
        >>> len(maps.layers), len(maps.sizes)
        (1, 1)
    """

    def attach(self, model: Bagel) -> None:
        """Use this model's tower."""
        self._model = (model,)  # in a tuple, so that it is not registered a second time
        self.channels, self.depth = model.config.vit.hidden_size, model.config.vit.num_hidden_layers

    def features(self, pictures: Sequence[Tensor], layers: Sequence[int]) -> FeatureMaps:
        """Residual streams of the tower."""
        model = self._model[0]
        tower, config = model.understanding.vision, model.config
        views = encoder_views(pictures, config.vit_transform)
        patch, side = config.vit.patch_size, config.vit.patches_per_side
        sizes = [(v.shape[1] // patch, v.shape[2] // patch) for v in views]
        patches = patches_of(views, patch)
        of_size = {size: grid_ids(size, side) for size in dict.fromkeys(sizes)}
        ids = moved(padded([of_size[size] for size in sizes]), patches.device)
        mask = None
        if len(of_size) > 1:
            lengths = moved(torch.tensor([h * w for h, w in sizes]), patches.device)
            mask = torch.arange(patches.shape[1], device=patches.device) < lengths[:, None]
        streams = islice(tower.streams(patches.to(model.dtype), ids, mask), max(layers) + 1)  # no layer too many
        return FeatureMaps([stream for number, stream in enumerate(streams) if number in layers], sizes)


class TransformersFeatures(VisionFeatures):
    """A vision encoder from a local folder through transformers: DINOv2, SAM, SigLIP, CLIP and the like.

    Args:
        folder: with config.json, safetensors weights and, for mean and deviation of the pixels,
            preprocessor_config.json.
        size: side in pixels to which pictures are resized; default what the encoder was trained with.

    Raises FileNotFoundError when the folder or its configuration is missing.

    Examples:
        >>> TransformersFeatures("dinov2")
        Traceback (most recent call last):
        ...
        FileNotFoundError: dinov2: no config.json; give the folder of a vision model of transformers
    """

    mean: Tensor
    std: Tensor

    def __init__(self, folder: str, size: int | None = None) -> None:
        super().__init__()
        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(f"{folder}: no config.json; give the folder of a vision model of transformers")
        from transformers import AutoModel

        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        # Of two-tower and segmentation models only the image side is wanted.
        encoder = next((getattr(model, n) for n in ("vision_model", "vision_encoder") if hasattr(model, n)), model)
        self.encoder = encoder.requires_grad_(False)
        config = encoder.config
        self.channels, self.depth = config.hidden_size, config.num_hidden_layers
        self.patch = config.patch_size
        self.size = size or config.image_size
        if self.size % self.patch:
            raise ValueError(f"size {self.size} must be a multiple of the encoder's patch of {self.patch} pixels")
        processor = _read_json(Path(folder) / "preprocessor_config.json")
        mean, std = processor.get("image_mean", [0.5] * 3), processor.get("image_std", [0.5] * 3)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.eval()

    def features(self, pictures: Sequence[Tensor], layers: Sequence[int]) -> FeatureMaps:
        """Hidden states; class and register tokens are left out."""
        size = (self.size, self.size)
        pixels = torch.stack([resized(p.clamp(-1, 1), size) for p in pictures]) * 0.5 + 0.5
        output = self.encoder((pixels - self.mean) / self.std, output_hidden_states=True)
        side = self.size // self.patch
        tapped = []
        for layer in layers:
            hidden = output.hidden_states[layer]
            tokens = hidden.flatten(1, 2) if hidden.ndim == 4 else hidden
            tapped.append(tokens[:, -side * side :])
        return FeatureMaps(tapped, [(side, side)] * len(pictures))


class PixelCritic(nn.Module):
    """Discriminator of pictures: trainable heads on frozen features (DMDX section 3).

    Args:
        encoder: the features, already attached.
        settings: which layers are tapped, and how wide the heads are.

    Examples:
        >>> from hyperbagel.critics.latent import CriticSettings
        >>> from hyperbagel.critics.pixel import BagelViTFeatures
        >>> features = BagelViTFeatures()
        >>> features.attach(model)
        >>> critic = PixelCritic(features, CriticSettings(layers=1, channels=8))
        >>> critic([torch.zeros(3, 32, 32)]).shape
        torch.Size([1, 1])
    """

    def __init__(self, encoder: VisionFeatures, settings: CriticSettings) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = settings.tapped(encoder.depth, f"the encoder {type(encoder).__name__}")
        self.heads = HeadStack(len(self.layers), encoder.channels, settings.channels, settings.kind)

    def forward(self, pictures: Sequence[Tensor]) -> Tensor:
        """Logits (B, heads), high for real, of pictures (3, H, W) in about [-1, 1]."""
        maps = self.encoder.features(pictures, self.layers)
        logits: Tensor = self.heads(maps.layers, maps.sizes)
        return logits


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
