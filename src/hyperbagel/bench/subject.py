"""What is measured: a model, a branch that stands for a distilled one, and documents of a usual size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import torch
from PIL import Image
from torch import Tensor, nn

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE, GenerationBranch
from hyperbagel.bagel.build.assemble import PRESETS, compose
from hyperbagel.bagel.build.initial import fresh, leaves
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.images import to_pixels
from hyperbagel.bagel.joined import join
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, ImageSegment, TextSegment, ViTSegment
from hyperbagel.bench.device import Meter, Peaks
from hyperbagel.bench.exactness import distance, evaluation, in_float32
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead
from hyperbagel.pipeline.device import Runtime
from hyperbagel.pipeline.economy import Offload, settle
from hyperbagel.pipeline.footprint import Footprint, Request
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
    measure few repeats, and fewer steps of what has many; runtime: how it computes; offload: what brings parts to the
    device, if not all are there; exact: an evaluation in float32, of weights that are not rounded, with how far one of
    such weights is from it; None where that is not known."""

    model: Bagel
    branch: GenerationBranch
    meter: Meter
    peaks: Peaks
    quick: bool = False
    runtime: Runtime = field(default_factory=Runtime)
    offload: Offload | None = None
    exact: tuple[Tensor, float] | None = None

    @staticmethod
    def of(model: Bagel, runtime: Runtime, quick: bool = False) -> Subject:
        """A loaded model, made as small or fast as is asked for, with the peaks of its device."""
        place, dtype = runtime.resolve()
        branch = student_of(model.eval().requires_grad_(False))
        exact = None
        if model.device.type == place.type and (dtype, runtime.quantize) != (torch.float32, None):
            known, _ = evaluation(*in_float32(model, branch), text())
            own, _ = evaluation(model, branch, text())
            with torch.inference_mode():
                velocity = known()
                exact = velocity, distance(own(), velocity)
        offload = settle(runtime, model, [branch])
        meter = Meter(place)
        return Subject(model, branch, meter, Peaks.of(meter, dtype), quick, runtime, offload, exact)

    def need(self, *parts: nn.Module) -> None:
        """Have these parts on the device, beside the understanding stack, before they are used."""
        if self.offload is not None:
            self.offload.need(*parts)

    def planned(self, editing: bool, batch: int) -> int:
        """Bytes that `hyperbagel plan --inference` says of pictures or edits; the branch has no weights of its own."""
        config, how = self.model.config, self.runtime
        footprint = Footprint(config, how.quantize, how.offload, self.model.dtype.itemsize)
        tasks = footprint.tasks(Request(self.size[0], PROMPT + 2, batch))
        if not editing:
            return tasks["pictures"]
        return tasks["edits"] - (0 if how.offload else footprint.weights()["branch"])

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

    def picture(self) -> tuple[ImageSegment, ViTSegment]:
        """A picture of the model's largest size, for the autoencoder and for the ViT."""
        config, device = self.model.config, self.model.device
        height, width = self.size
        resized = config.vae_transform.resize(Image.effect_noise((width, height), 64).convert("RGB"))
        return ImageSegment(to_pixels(resized).to(device)), ViTSegment(config.vit_transform(resized).to(device))

    def prompts(self, batch: int) -> list[Document]:
        """Contexts of pictures."""
        return [text(i) for i in range(batch)]

    def edits(self, batch: int) -> list[Document]:
        """Contexts of edits."""
        return [[*self.picture(), *text(i)] for i in range(batch)]

    def questions(self, batch: int) -> list[Document]:
        """Contexts of answers."""
        return [[self.picture()[1], *text(i)] for i in range(batch)]


def text(seed: int = 0) -> Document:
    """A prompt, a question, an instruction."""
    generator = torch.Generator().manual_seed(seed)
    return [TextSegment(torch.randint(*_WORDS, (PROMPT,), generator=generator))]


def random_model(preset: Literal["7b", "scenes", "nano"], runtime: Runtime) -> Bagel:
    """Random weights of a preset's sizes, made where they are to be used, or where they have room before they are made
    smaller."""
    place, dtype = runtime.resolve()
    config = SIZES[preset]
    made = place
    if runtime.read_on_host and place.type == "cuda":
        weights = Footprint(config, itemsize=dtype.itemsize).weights()
        size = sum(weights[name] for name in ("understanding", "generation", "autoencoder"))
        made = place if torch.cuda.mem_get_info(place)[0] > 1.2 * size else torch.device("cpu")
    model = compose(config, dtype=dtype, device=made)
    head = model.generation.llm2vae.weight  # of a fresh model it is zero
    nn.init.normal_(head, std=head.shape[1] ** -0.5, generator=torch.Generator(made).manual_seed(0))
    arrange(model, place)
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
    if model.device.type == "cuda":
        join(head)
    return head.eval().requires_grad_(False)
