"""`hyperbagel generate` and `hyperbagel edit`: pictures from prompts, or from pictures and instructions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hyperbagel.cli.options import Edit, Generate
from hyperbagel.cli.uncollected import uncollected
from hyperbagel.files import check_picture
from hyperbagel.pipeline.loading import check_files, load_model

if TYPE_CHECKING:
    from hyperbagel.bagel.absent import Part
    from hyperbagel.flow.trajectory import Progress
    from hyperbagel.pipeline.pipeline import Pipeline
    from hyperbagel.pipeline.results import Picture


def generate(options: Generate) -> None:
    """Pictures from prompts."""
    from hyperbagel.cli.explanation import UsageError

    prompts = [*options.prompt, *([] if options.prompts is None else read_prompts(options.prompts))]
    if not prompts:
        raise UsageError("prompt is missing: say what the picture should show, or name a file of --prompts")
    for name in ("number", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} is {getattr(options, name)}: give at least 1")
    seeds = [options.seed + i for _ in prompts for i in range(options.number)]
    texts = [prompt for prompt in prompts for _ in range(options.number)]
    files = numbered(options.out, len(texts))
    _check(options, files)
    # The prompt is read by the understanding experts alone, so with a whole branch nothing asks the model's own.
    pipeline = _pipeline(options, prompts, ("generation",) if _is_whole(options.branch) else ())
    height, width = pipeline.size
    size = (options.height or height, options.width or width)
    for first in range(0, len(texts), options.batch_size):
        batch = slice(first, first + options.batch_size)
        with _progress() as show:
            pictures = pipeline.generate(
                texts[batch],
                steps=options.steps,
                text_scale=options.text_scale,
                seed=seeds[batch],
                size=size,
                think=options.think,
                progress=show,
            )
        for file, picture in zip(files[batch], pictures, strict=True):
            _write(file, picture)


def read_prompts(file: Path) -> list[str]:
    """The prompts of a file: its lines, empty ones left out, or what JSONL has under "prompt".

    Raises ValueError for a line that has none, OSError for a file that cannot be read.
    """
    prompts = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        prompt: object = line.strip()
        if file.suffix in (".jsonl", ".json"):
            try:
                prompt = json.loads(line)["prompt"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f'{file}, line {number}: give an object with a key "prompt" on each line') from error
        if not isinstance(prompt, str):
            raise ValueError(f"{file}, line {number}: the prompt is no text")
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{file}: holds no prompts")
    return prompts


def numbered(out: Path, count: int) -> list[Path]:
    """The files of so many pictures: `out` of one, and of several `out` with numbers before its ending."""
    digits = len(str(count - 1))
    return [out] if count == 1 else [out.with_stem(f"{out.stem}-{i:0{digits}}") for i in range(count)]


def edit(options: Edit) -> None:
    """Picture from a picture and an instruction."""
    from hyperbagel.bagel.images import load_image

    _check(options, [options.out])
    source = load_image(options.image)
    pipeline = _pipeline(options, [options.instruction], ())
    with _progress() as show:
        picture = pipeline.edit(
            source,
            options.instruction,
            steps=options.steps,
            text_scale=options.text_scale,
            image_scale=options.image_scale,
            seed=options.seed,
            think=options.think,
            progress=show,
        )
    _write(options.out, picture)


@uncollected()
def _check(options: Generate | Edit, files: Sequence[Path]) -> None:
    """Raises, before a model is loaded, what tells that the pictures cannot be made or written as asked for."""
    from hyperbagel.flow.guidance import Guidance
    from hyperbagel.flow.sampler import Sampler

    check_picture(files[0])
    check_files(options.branch)
    Guidance(options.text_scale, getattr(options, "image_scale", 1.0))
    Sampler(1 if options.steps is None else options.steps)


@uncollected()
def _pipeline(options: Generate | Edit, texts: Sequence[str], without: tuple[Part, ...]) -> Pipeline:
    from hyperbagel.pipeline.pipeline import Pipeline

    context = options.context if isinstance(options, Edit) else None
    loaded = load_model(options.model, options.device, without, texts)
    return Pipeline(*loaded, options.branch, context=context).settle(options.device)


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
    if picture.thought:
        print(picture.thought)
    width, height = picture.image.size
    print(f"{out}: {width}x{height} pixels, {picture.nfe} NFE, {picture.seconds:.2f} s")
