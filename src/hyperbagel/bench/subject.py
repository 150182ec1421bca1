"""What is measured: a model, a branch that stands for a distilled one, and documents of a usual size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE, GenerationBranch
from hyperbagel.bagel.build.assemble import PRESETS, compose
from hyperbagel.bagel.build.initial import fresh, leaves
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.images import to_pixels
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, ImageSegment, TextSegment, ViTSegment
from hyperbagel.bench.device import Meter, Peaks
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead
from hyperbagel.pipeline.loading import arrange
from hyperbagel.pipeline.painter import largest_square

SIZES: Final = {"7b": BagelConfig(), "scenes": PRESETS["scenes"], "nano": PRESETS["nano"]}
"""Models of random weights, by the name of the preset."""

PROMPT = 62
"""Tokens of a text, without the two that enclose it."""
_WORDS = (10, 500)
"""Range of the ids of a text, which every tokenizer has."""

Figures: TypeAlias = dict[str, Any]
Measurement: TypeAlias = tuple[Figures, Callable[[], Figures]]
"""What is to be measured, and what measures it."""


@dataclass(frozen=True)
class Subject:
    """A model on its device. branch: its own generation weights, with the conditions of a distilled branch; quick:
    measure few repeats, and fewer steps of what has many."""

    model: Bagel
    branch: GenerationBranch
    meter: Meter
    peaks: Peaks
    quick: bool = False

    @staticmethod
    def of(model: Bagel, quick: bool = False) -> Subject:
        """A model with the peaks of the device that it is on."""
        meter = Meter(model.device)
        return Subject(
            model.eval().requires_grad_(False), student_of(model), meter, Peaks.of(meter, model.dtype), quick
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of a picture."""
        return largest_square(self.model.config)

    @property
    def latents(self) -> int:
        """Latent tokens of a picture."""
        height, width = self.size
        return height * width // self.model.config.latent_stride**2

    @property
    def repeats(self) -> int:
        """How often something short is timed."""
        return 3 if self.quick else 5

    def text(self, seed: int = 0) -> TextSegment:
        """A prompt, a question, an instruction."""
        generator = torch.Generator().manual_seed(seed)
        return TextSegment(torch.randint(*_WORDS, (PROMPT,), generator=generator))

    def picture(self) -> tuple[ImageSegment, ViTSegment]:
        """A picture of the model's largest size, for the autoencoder and for the ViT."""
        config, device = self.model.config, self.model.device
        height, width = self.size
        resized = config.vae_transform.resize(Image.effect_noise((width, height), 64).convert("RGB"))
        return ImageSegment(to_pixels(resized).to(device)), ViTSegment(config.vit_transform(resized).to(device))

    def prompts(self, batch: int) -> list[Document]:
        """Contexts of pictures."""
        return [[self.text(i)] for i in range(batch)]

    def edits(self, batch: int) -> list[Document]:
        """Contexts of edits."""
        return [[*self.picture(), self.text(i)] for i in range(batch)]

    def questions(self, batch: int) -> list[Document]:
        """Contexts of answers."""
        return [[self.picture()[1], self.text(i)] for i in range(batch)]


def random_model(preset: Literal["7b", "scenes", "nano"], device: torch.device, dtype: torch.dtype) -> Bagel:
    """Random weights of a preset's sizes, made where they are to be used."""
    model = compose(SIZES[preset], dtype=dtype, device=device)
    arrange(model, device)
    return model


def student_of(model: Bagel) -> GenerationBranch:
    """A branch that takes guidance scales and shares all other weights with the model's own: it costs what a distilled
    one does."""
    own = model.generation
    branch: GenerationBranch = copy.deepcopy(own, {id(value): value for value in (*own.parameters(), *own.buffers())})
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    return branch.eval().requires_grad_(False)


def random_draft(model: Bagel, config: DraftConfig = DraftConfig(zero_init=False)) -> DraftHead:
    """A draft head of random weights, made on the model's device."""
    with torch.device("meta"):
        head = DraftHead(config, model.config.llm)
    generator = torch.Generator(model.device).manual_seed(0)
    values: dict[str, Tensor] = {
        name: fresh(module, name, empty, generator).to(model.device, model.dtype)
        for name, module, empty in leaves(head, "")
    }
    head.load_state_dict(values, assign=True)
    return head.eval().requires_grad_(False)
