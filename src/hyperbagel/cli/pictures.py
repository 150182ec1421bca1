"""`hyperbagel generate` and `hyperbagel edit`: pictures from prompts, or from pictures and instructions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hyperbagel.cli.loading import Device, check_files, load_model, load_sampler
from hyperbagel.files import check_picture, write_picture

if TYPE_CHECKING:
    from torch import Tensor

    from hyperbagel.bagel.absent import Part
    from hyperbagel.evaluation.inference import Painter
    from hyperbagel.flow.guidance import Guidance
    from hyperbagel.flow.trajectory import Progress


@dataclass(frozen=True)
class Generate:
    """Make a picture from a prompt.

    Args:
        prompt: what the picture should show.
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
        instruction: what should change.
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
    """Picture from a prompt."""
    from hyperbagel.flow.guidance import PAPER_GENERATION

    guidance = _checked(options, replace(PAPER_GENERATION, text_scale=options.text_scale))
    # The prompt is read by the understanding experts alone, so with a branch nothing asks the model's own.
    painter = _painter(options, guidance, () if options.branch is None else ("generation",), options.prompt)
    height, width = painter.size
    size = (options.height or height, options.width or width)
    with _progress(painter) as show:
        (drawn,) = painter.generate([options.prompt], [options.seed], size, show)
    _write(options.out, drawn, painter)


def edit(options: Edit) -> None:
    """Picture from a picture and an instruction."""
    from hyperbagel.bagel.images import load_image
    from hyperbagel.flow.guidance import PAPER_EDITING

    scaled = replace(PAPER_EDITING, text_scale=options.text_scale, image_scale=options.image_scale)
    guidance = _checked(options, scaled)
    source = load_image(options.image)
    painter = _painter(options, guidance, (), options.instruction)
    with _progress(painter) as show:
        (drawn,) = painter.edit([source], [options.instruction], [options.seed], show)
    _write(options.out, drawn, painter)


def _checked(options: Generate | Edit, guidance: Guidance) -> Guidance:
    """`guidance`, once it is known that the picture can be made and written as asked for: before a model is loaded."""
    from hyperbagel.flow.sampler import Sampler

    check_picture(options.out)
    check_files(options.branch)
    Sampler(1 if options.steps is None else options.steps, guidance=guidance)
    return guidance


def _painter(options: Generate | Edit, guidance: Guidance, without: tuple[Part, ...], text: str) -> Painter:
    from hyperbagel.evaluation.inference import Painter

    bagel, tokenizer = load_model(options.model, options.device, without, text)
    branch, sampler = load_sampler(bagel, options.branch, options.steps, guidance)
    return Painter(bagel, tokenizer, sampler, branch)


@contextmanager
def _progress(painter: Painter) -> Iterator[Progress]:
    """A progress bar over the steps of denoising."""
    import torch
    from tqdm import tqdm

    with torch.inference_mode(), tqdm(total=painter.sampler.steps, desc="denoising", unit="step") as bar:
        yield lambda done, steps: bar.update(done - bar.n)


def _write(out: Path, drawn: Tensor, painter: Painter) -> None:
    """Write a picture (3, H, W) uint8, and tell what it cost."""
    from PIL import Image

    picture = Image.fromarray(drawn.permute(1, 2, 0).contiguous().numpy())
    write_picture(out, picture)
    cost = painter.cost
    print(f"{out}: {picture.width}x{picture.height} pixels, {cost.nfe} NFE, {cost.seconds:.2f} s")
