"""`hyperbagel generate` and `hyperbagel edit`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbagel.cli.loading import Device, check_files, load_model, load_sampler
from hyperbagel.files import check_picture, write_picture

if TYPE_CHECKING:
    from tqdm import tqdm

    from hyperbagel.bagel.absent import Part
    from hyperbagel.bagel.model import Bagel
    from hyperbagel.bagel.segments import Document
    from hyperbagel.flow.guidance import Guidance


@dataclass(frozen=True)
class Generate:
    """Make a picture from a prompt.

    Args:
        prompt: what the picture shall show.
        model: checkpoint folder, or the name of a model that comes with the package.
        branch: file of a distilled generation branch; only denoising uses it, the context is prefilled on the model.
        steps: denoising steps; default as many as the branch was made for, and 50 without one. With guidance each
            costs two evaluations of the network (one on a distilled branch).
        text_scale: strength of the text guidance, 1 switches it off.
        seed: of the noise; equal seeds give equal pictures.
        width: of the picture in pixels, a multiple of the model's latent stride; default the model's largest.
        height: likewise.
        out: picture file to write.
        device: where and how to compute.
    """

    prompt: str
    model: str = "scenes"
    branch: str | None = None
    steps: int | None = None
    text_scale: float = 4.0
    seed: int = 0
    width: int | None = None
    height: int | None = None
    out: Path = Path("out.png")
    device: Device = field(default_factory=Device)


@dataclass(frozen=True)
class Edit:
    """Change a picture as an instruction says.

    Args:
        image: picture file to start from.
        instruction: what shall change.
        model: checkpoint folder, or the name of a model that comes with the package.
        branch: file of a distilled generation branch; only denoising uses it, the context is prefilled on the model.
        steps: denoising steps; default as many as the branch was made for, and 50 without one. With guidance each
            costs up to three evaluations of the network (one on a distilled branch).
        text_scale: strength of the text guidance, 1 switches all guidance off.
        image_scale: strength of the guidance by the source picture, 1 switches it off.
        seed: of the noise; equal seeds give equal pictures.
        out: picture file to write.
        device: where and how to compute.
    """

    image: Path
    instruction: str
    model: str = "scenes"
    branch: str | None = None
    steps: int | None = None
    text_scale: float = 4.0
    image_scale: float = 2.0
    seed: int = 0
    out: Path = Path("out.png")
    device: Device = field(default_factory=Device)


def generate(options: Generate) -> None:
    """Run `hyperbagel generate`."""
    from hyperbagel.bagel.segments import TextSegment
    from hyperbagel.flow.guidance import PAPER_GENERATION

    guidance = _checked(options, replace(PAPER_GENERATION, text_scale=options.text_scale))
    # The prompt is read by the understanding experts alone, so with a branch nothing asks the model's own.
    without: tuple[Part, ...] = () if options.branch is None else ("generation",)
    bagel, tokenizer = load_model(options.model, options.device, without, options.prompt)
    config = bagel.config
    largest = min(config.max_latent_size * config.latent_stride, config.vae_transform.max_size)
    task = _Task(
        document=[TextSegment(tokenizer.prompt(options.prompt))],
        size=(options.height or largest, options.width or largest),
        guidance=guidance,
        options=options,
    )
    _run(bagel, task)


def edit(options: Edit) -> None:
    """Run `hyperbagel edit`."""
    from hyperbagel.bagel.images import load_image, to_pixels
    from hyperbagel.bagel.segments import ImageSegment, TextSegment, ViTSegment
    from hyperbagel.flow.guidance import PAPER_EDITING

    scaled = replace(PAPER_EDITING, text_scale=options.text_scale, image_scale=options.image_scale)
    guidance = _checked(options, scaled)
    picture = load_image(options.image)
    bagel, tokenizer = load_model(options.model, options.device, prompt=options.instruction)
    source = bagel.config.vae_transform.resize(picture)
    pixels, vit = to_pixels(source), bagel.config.vit_transform(source)
    task = _Task(
        document=[
            ImageSegment(pixels.to(bagel.device)),
            ViTSegment(vit.to(bagel.device, bagel.dtype)),
            TextSegment(tokenizer.prompt(options.instruction)),
        ],
        size=(source.height, source.width),
        guidance=guidance,
        options=options,
    )
    _run(bagel, task)


def _checked(options: Generate | Edit, guidance: Guidance) -> Guidance:
    """`guidance`, once it is known that the picture can be made and written as asked for: before a model is loaded."""
    from hyperbagel.flow.sampler import Sampler

    check_picture(options.out)
    check_files(options.branch)
    Sampler(1 if options.steps is None else options.steps, guidance=guidance)
    return guidance


@dataclass(frozen=True)
class _Task:
    """One picture to make: what from, its (height, width) in pixels, and how."""

    document: Document
    size: tuple[int, int]
    guidance: Guidance
    options: Generate | Edit


def _run(bagel: Bagel, task: _Task) -> None:
    """Denoise, decode and write the picture, with a progress bar and a closing line."""
    import torch
    from tqdm import tqdm

    from hyperbagel.bagel.images import to_pil

    options = task.options
    branch, sampler = load_sampler(bagel, options.branch, options.steps, task.guidance)
    grid = bagel.latent_grid([task.size])
    generator = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(1, grid.position_ids.shape[1], bagel.config.latent_token_dim, generator=generator)
    started = time.perf_counter()
    with torch.inference_mode(), tqdm(total=sampler.steps, desc="denoising", unit="step") as bar:
        passes = branch is None or not branch.guided
        contexts = bagel.prefill_guided([task.document], text=passes, image=passes and task.guidance.uses_image)
        sample = sampler.sample(
            bagel, contexts, grid, noise.to(bagel.device), branch, progress=lambda done, _: _advance(bar, done)
        )
        picture = to_pil(bagel.decode_latents(sample.latents, grid)[0])
    seconds = time.perf_counter() - started
    write_picture(options.out, picture)
    print(f"{options.out}: {task.size[1]}x{task.size[0]} pixels, {sample.nfe} NFE, {seconds:.2f} s")


def _advance(bar: tqdm[Any], done: int) -> None:
    bar.update(done - bar.n)
