"""Pictures from prompts, or from pictures and instructions, in batches: the one way of drawing."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hyperbagel.bagel.appearance import as_seen
from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.branch_checkpoint import BranchInfo
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.images import to_pixels, to_uint8
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, ImageSegment, TextSegment, ViTSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.bagel.transfer import moved
from hyperbagel.flow.sampler import Sampler
from hyperbagel.flow.trajectory import Progress
from hyperbagel.pipeline.economy import Offload, read_by
from hyperbagel.pipeline.thinking import system_text

log = logging.getLogger(__name__)


def warn_of_misfits(branch: str, info: BranchInfo, sampler: Sampler) -> None:
    """Tell of steps and scales of a sampler that a branch was not made for. branch: its file or name."""
    guidance = sampler.guidance
    text = None if guidance is None else guidance.text_scale
    image = guidance.image_scale if guidance is not None and guidance.uses_image else None
    for problem in info.misfits(sampler.steps, text, image):
        log.warning("%s: %s", branch, problem)


@dataclass
class Cost:
    """What drawing has cost so far. nfe: network evaluations of one picture; seconds: from prompts to pixels."""

    images: int = 0
    seconds: float = 0.0
    nfe: int = 0

    @property
    def seconds_per_image(self) -> float:
        """Mean over all pictures."""
        return self.seconds / max(self.images, 1)


@dataclass
class Painter:
    """Draws and edits pictures. branch: what denoises (None: the model's own); the sampler says what reads sources;
    offload: brings what is needed to the device."""

    model: Bagel
    tokenizer: Tokenizer
    sampler: Sampler
    branch: GenerationBranch | None = None
    cost: Cost = field(default_factory=Cost)
    offload: Offload | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of a generated picture unless others are asked for: the model's largest square."""
        return largest_square(self.model.config)

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        size: tuple[int, int] | None = None,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """One picture (3, H, W) uint8 on the CPU for each prompt, from noise of its seed."""
        return self.draw(self.prompts(prompts), [size or self.size] * len(prompts), seeds, progress)

    def prompts(self, prompts: Sequence[str], system: str = "") -> list[Document]:
        """The documents that prompts are; system: a text before each."""
        return [
            [*system_text(self.tokenizer, system), TextSegment(self.tokenizer.prompt(prompt))] for prompt in prompts
        ]

    def edit(
        self,
        sources: Sequence[Image.Image],
        instructions: Sequence[str],
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """Each source picture changed as its instruction says: (3, H, W) uint8 on the CPU, at the model's size."""
        documents, sizes = self.edits(sources, instructions)
        return self.draw(documents, sizes, seeds, progress)

    def edits(
        self, sources: Sequence[Image.Image], instructions: Sequence[str], system: str = ""
    ) -> tuple[list[Document], list[tuple[int, int]]]:
        """The documents that edits are, and heights and widths of their pictures; system: a text before each."""
        documents: list[Document] = []
        sizes = []
        for picture, instruction in zip(sources, instructions, strict=True):
            seen, size = self.shown(picture)
            documents.append(
                [*system_text(self.tokenizer, system), *seen, TextSegment(self.tokenizer.prompt(instruction))]
            )
            sizes.append(size)
        return documents, sizes

    def shown(self, picture: Image.Image) -> tuple[list[ImageSegment | ViTSegment], tuple[int, int]]:
        """A picture as what is drawn after it sees it, for the autoencoder and for the ViT; its height and width."""
        config, device = self.model.config, self.model.device
        resized = config.vae_transform.resize(as_seen(picture))
        pixels, seen = to_pixels(resized), config.vit_transform(resized)
        return [ImageSegment(pixels.to(device)), ViTSegment(seen.to(device))], (resized.height, resized.width)

    @torch.no_grad()
    def draw(
        self,
        documents: Sequence[Document],
        sizes: Sequence[tuple[int, int]],
        seeds: Sequence[int],
        progress: Progress | None = None,
        thoughts: Sequence[str] | None = None,
    ) -> list[Tensor]:
        """The picture that follows on each document, (3, H, W) uint8 on the CPU.

        sizes: height and width in pixels; thoughts: what was thought about each document, which what is drawn reads
        behind it, but the variants of guidance do not.
        """
        started = time.perf_counter()
        grid = self.model.latent_grid(sizes)
        denoiser = self.branch or self.model.generation
        self._need(*read_by(self.model, documents, denoiser if self.sampler.context == "student" else None))
        contexts = self.sampler.read(self.model, documents, self.branch)
        if thoughts is not None:
            read = [[TextSegment(self.tokenizer.prompt(thought))] for thought in thoughts]
            contexts = replace(contexts, full=self.model.prefill(read, contexts.full))
        noise = moved(seeded_noise(grid, seeds, self.model.config.latent_token_dim), self.model.device)
        self._need(denoiser)
        sample = self.sampler.sample(self.model, contexts, grid, noise, self.branch, progress)
        self._need(self.model.autoencoder)
        pictures = [to_uint8(picture).cpu() for picture in self.model.decode_latents(sample.latents, grid)]
        self.cost.nfe = max(self.cost.nfe, sample.nfe)
        self.cost.images += len(pictures)
        self.cost.seconds += time.perf_counter() - started
        return pictures

    def _need(self, *parts: nn.Module) -> None:
        if self.offload is not None:
            self.offload.need(*parts)


def largest_square(config: BagelConfig) -> tuple[int, int]:
    """Height and width in pixels of the largest square picture that a model draws."""
    side = min(config.vae_transform.max_size, config.max_latent_size * config.latent_stride)
    return side, side


def seeded_noise(grid: LatentGrid, seeds: Sequence[int], channels: int) -> Tensor:
    """Standard normal tokens (B, n, C), each picture's from its own seed, zero at padding."""
    rows = [
        torch.randn(height * width, channels, dtype=torch.float32, generator=_generator(seed))
        for (height, width), seed in zip(grid.sizes, seeds, strict=True)
    ]
    return pad_sequence(rows, batch_first=True)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
