"""`hyperbagel generate` and `hyperbagel edit`: pictures from prompts, or from pictures and instructions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hyperbagel.files import check_picture
from hyperbagel.pipeline.loading import Device, check_files, load_model

if TYPE_CHECKING:
    from hyperbagel.bagel.absent import Part
    from hyperbagel.flow.guidance import Guidance
    from hyperbagel.flow.trajectory import Progress
    from hyperbagel.pipeline.pipeline import Picture, Pipeline


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
        branch: file of a distilled generation branch, for denoising.
        steps: denoising steps; default as many as the branch was made for, and 50 without one. With guidance each
            costs up to three evaluations of the network (one on a distilled branch).
        text_scale: strength of the text guidance, 1 switches all guidance off.
        image_scale: strength of the guidance by the source picture, 1 switches it off.
        context: which branch reads the source picture, original or student; default what the branch was made for.
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
    context: Literal["original", "student"] | None = None
    seed: int = 0
    out: Path = Path("out.png")
    device: Device = field(default_factory=Device)


def generate(options: Generate) -> None:
    """Picture from a prompt."""
    from hyperbagel.flow.guidance import PAPER_GENERATION

    _check(options, replace(PAPER_GENERATION, text_scale=options.text_scale))
    # The prompt is read by the understanding experts alone, so with a whole branch nothing asks the model's own.
    pipeline = _pipeline(options, options.prompt, ("generation",) if _is_whole(options.branch) else ())
    height, width = pipeline.size
    size = (options.height or height, options.width or width)
    with _progress() as show:
        picture = pipeline.generate(
            options.prompt,
            steps=options.steps,
            text_scale=options.text_scale,
            seed=options.seed,
            size=size,
            progress=show,
        )
    _write(options.out, picture)


def edit(options: Edit) -> None:
    """Picture from a picture and an instruction."""
    from hyperbagel.bagel.images import load_image
    from hyperbagel.flow.guidance import PAPER_EDITING

    _check(options, replace(PAPER_EDITING, text_scale=options.text_scale, image_scale=options.image_scale))
    source = load_image(options.image)
    pipeline = _pipeline(options, options.instruction, ())
    with _progress() as show:
        picture = pipeline.edit(
            source,
            options.instruction,
            steps=options.steps,
            text_scale=options.text_scale,
            image_scale=options.image_scale,
            seed=options.seed,
            progress=show,
        )
    _write(options.out, picture)


def _check(options: Generate | Edit, guidance: Guidance) -> None:
    """Raises, before a model is loaded, what tells that the picture cannot be made or written as asked for."""
    from hyperbagel.flow.sampler import Sampler

    check_picture(options.out)
    check_files(options.branch)
    Sampler(1 if options.steps is None else options.steps, guidance=guidance)


def _pipeline(options: Generate | Edit, text: str, without: tuple[Part, ...]) -> Pipeline:
    from hyperbagel.pipeline.pipeline import Pipeline

    context = options.context if isinstance(options, Edit) else None
    return Pipeline(*load_model(options.model, options.device, without, text), options.branch, context=context)


def _is_whole(branch: str | None) -> bool:
    """Whether a branch needs nothing of the model's own."""
    from hyperbagel.bagel.branch_checkpoint import branch_file, has_adapters

    return branch is not None and not has_adapters(branch_file(branch))


@contextmanager
def _progress() -> Iterator[Progress]:
    """A progress bar over the steps of denoising."""
    from tqdm import tqdm

    with tqdm(desc="denoising", unit="step") as bar:

        def show(done: int, steps: int) -> None:
            bar.total = steps
            bar.update(done - bar.n)

        yield show


def _write(out: Path, picture: Picture) -> None:
    """Write a picture, and tell what it cost."""
    picture.save(out)
    width, height = picture.image.size
    print(f"{out}: {width}x{height} pixels, {picture.nfe} NFE, {picture.seconds:.2f} s")
