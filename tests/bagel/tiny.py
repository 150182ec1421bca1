"""A random BAGEL of a few thousand parameters, and documents of every kind for it."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperbagel.bagel.autoencoder import AutoencoderConfig
from hyperbagel.bagel.config import BagelConfig, LLMConfig, SpecialTokens, ViTConfig
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, DroppedSegment, LatentSegment, TextSegment, ViTSegment

CONFIG = BagelConfig(
    llm=LLMConfig(64, 32, 48, 3, 4, 2),
    vit=ViTConfig(24, 32, 2, 2, patch_size=4, image_size=32),
    autoencoder=AutoencoderConfig(ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=4, pixel_unshuffle=4),
    tokens=SpecialTokens(1, 2, 3, 4),
    max_latent_size=6,
)
STRIDE = 8
"""Pixels per side of a latent token."""


def tiny_model(seed: int = 0) -> Bagel:
    """Weights are nowhere zero and large enough that every part of the model shows in its output."""
    model = Bagel(CONFIG)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        centre = 1.0 if parameter.ndim == 1 else 0.0
        parameter.data = centre + spread * torch.randn(parameter.shape, generator=generator)
    return model.eval()


class Maker:
    """Random segments."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def text(self, length: int, *, loss: bool = False) -> TextSegment:
        return TextSegment(torch.randint(5, CONFIG.llm.vocab_size, (length,), generator=self.generator), loss)

    def pixels(self, height: int, width: int) -> Tensor:
        return torch.rand(3, height, width, generator=self.generator) * 2 - 1

    def vit(self, height: int, width: int) -> ViTSegment:
        return ViTSegment(self.pixels(height, width))

    def latent(self, rows: int, columns: int, *, loss: bool = False) -> LatentSegment:
        """An image of this many latent tokens."""
        return LatentSegment(torch.randn(4, 2 * rows, 2 * columns, generator=self.generator), loss)

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)


def mixed_documents(seed: int = 0) -> list[Document]:
    """Different lengths and image sizes, text only, nothing at all, several turns, dropped pictures."""
    make = Maker(seed)
    return [
        [make.text(5)],
        [make.latent(2, 3), make.vit(8, 12), make.text(4)],
        [],
        [make.latent(1, 4), make.vit(4, 32), make.text(3), make.latent(6, 1), make.vit(12, 4), make.text(9)],
        [DroppedSegment(), make.vit(16, 8), make.text(0)],
        [make.text(2), make.latent(3, 3), DroppedSegment()],
        [make.vit(8, 8), make.text(3), make.text(2), DroppedSegment(), make.text(1)],
    ]


MIXED_SIZES = [(2, 2), (2, 3), (6, 6), (6, 1), (1, 1), (3, 3), (1, 5)]
"""Token grids of images to be denoised, one for each of `mixed_documents`."""
