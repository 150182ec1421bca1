"""`hyperbagel.load` and `Pipeline`: draw, edit and ask in a few lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, overload

import torch
from PIL import Image
from torch import Tensor

from hyperbagel.bagel.absent import Part
from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.branch_checkpoint import BranchInfo, load_branch
from hyperbagel.bagel.images import load_image
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.speculative import Speculator
from hyperbagel.decoding.statistics import SpeculationStatistics
from hyperbagel.draft.checkpoint import load_draft
from hyperbagel.files import write_picture
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION, Guidance
from hyperbagel.flow.sampler import Reader, Sampler
from hyperbagel.flow.trajectory import Progress
from hyperbagel.pipeline.answers import TextStream, question_document
from hyperbagel.pipeline.loading import Device, check_files, load_model
from hyperbagel.pipeline.painter import Painter, largest_square, warn_of_misfits

STEPS: Final = 50
"""Denoising steps of a teacher, unless told otherwise."""


@dataclass(frozen=True)
class Picture:
    """A drawn picture and what it cost."""

    image: Image.Image
    """The picture, RGB."""
    nfe: int
    """Evaluations of the generation network."""
    seconds: float
    """From text to pixels; of a picture that was drawn with others, its share."""

    def save(self, path: str | Path) -> None:
        """Write a file, in the format that its name says. Raises ValueError for one that is no picture's."""
        write_picture(path, self.image)

    def show(self) -> None:
        """Open it in the viewer of the system; a notebook shows it by itself."""
        self.image.show()

    def _repr_png_(self) -> bytes | None:
        return self.image._repr_png_()


@dataclass(frozen=True)
class Answer:
    """What the model said, and what that cost."""

    text: str
    """The answer."""
    tokens: int
    """Its length, the token that ends it included; of an answer that was written with others, all of theirs."""
    passes: int
    """Passes of the model: as many as tokens without a draft head, and fewer with one."""
    seconds: float
    """From the question to the last token."""

    @property
    def tokens_per_second(self) -> float:
        """Speed, reading the question included."""
        return self.tokens / self.seconds

    def __str__(self) -> str:
        return self.text


class Pipeline:
    """Draws, edits and answers with one model. `load` makes one.

    Text reads the model alone; a distilled branch takes the place of its generation side in denoising, and a draft head
    speeds answers up without changing them. One request at a time.

    Args:
        model: what reads, and without a branch draws.
        tokenizer: the model's.
        branch: file or name of a distilled branch.
        draft: file or name of a draft head.
        context: which branch reads the source pictures of edits; None: as the branch was made for.
    """

    def __init__(
        self,
        model: Bagel,
        tokenizer: Tokenizer,
        branch: str | Path | None = None,
        draft: str | Path | None = None,
        context: Reader | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._name = None if branch is None else str(branch)
        self._branch: GenerationBranch | None = None
        self._info: BranchInfo | None = None
        if branch is not None:
            self._branch, self._info = load_branch(branch, model)
        self._draft = None if draft is None else load_draft(draft, model)
        self._context = context

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of a picture unless others are asked for."""
        return largest_square(self.model.config)

    @overload
    def generate(
        self,
        prompts: str,
        *,
        steps: int | None = ...,
        text_scale: float = ...,
        seed: int = ...,
        size: tuple[int, int] | None = ...,
        progress: Progress | None = ...,
    ) -> Picture: ...

    @overload
    def generate(
        self,
        prompts: list[str],
        *,
        steps: int | None = ...,
        text_scale: float = ...,
        seed: int | Sequence[int] = ...,
        size: tuple[int, int] | None = ...,
        progress: Progress | None = ...,
    ) -> list[Picture]: ...

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        steps: int | None = None,
        text_scale: float = PAPER_GENERATION.text_scale,
        seed: int | Sequence[int] = 0,
        size: tuple[int, int] | None = None,
        progress: Progress | None = None,
    ) -> Picture | list[Picture]:
        """A picture of a prompt, or pictures of several, drawn together.

        steps: of denoising, None for as many as the branch was made for (a teacher: 50); text_scale: strength of the
        guidance, 1 switches it off; seed: of the noise, one for all pictures or one each; size: height and width in
        pixels, None for the model's largest; progress: called after each step with (done, steps).
        Raises ValueError for what cannot be drawn.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        painter = self.painter(replace(PAPER_GENERATION, text_scale=text_scale), steps)
        with torch.inference_mode():
            drawn = painter.generate(texts, _each(seed, len(texts)), size, progress)
        pictures = _pictures(drawn, painter)
        return pictures[0] if isinstance(prompts, str) else pictures

    @overload
    def edit(
        self,
        images: Image.Image | str | Path,
        instructions: str,
        *,
        steps: int | None = ...,
        text_scale: float = ...,
        image_scale: float = ...,
        seed: int = ...,
        progress: Progress | None = ...,
    ) -> Picture: ...

    @overload
    def edit(
        self,
        images: list[Image.Image] | list[str] | list[Path],
        instructions: str | list[str],
        *,
        steps: int | None = ...,
        text_scale: float = ...,
        image_scale: float = ...,
        seed: int | Sequence[int] = ...,
        progress: Progress | None = ...,
    ) -> list[Picture]: ...

    def edit(
        self,
        images: Image.Image | str | Path | Sequence[Image.Image | str | Path],
        instructions: str | Sequence[str],
        *,
        steps: int | None = None,
        text_scale: float = PAPER_EDITING.text_scale,
        image_scale: float = PAPER_EDITING.image_scale,
        seed: int | Sequence[int] = 0,
        progress: Progress | None = None,
    ) -> Picture | list[Picture]:
        """A picture changed as an instruction says, or several, each by its own or all by one.

        images: pictures or their files; image_scale: strength of the guidance by the picture; all else as in
        `generate`. Raises ValueError for what cannot be drawn, ImageError for a file that is no picture.
        """
        one = isinstance(images, Image.Image | str | Path)
        sources = [images] if isinstance(images, Image.Image | str | Path) else list(images)
        texts = [instructions] * len(sources) if isinstance(instructions, str) else list(instructions)
        if len(texts) != len(sources):
            raise ValueError(f"{len(texts)} instructions for {len(sources)} pictures: give one for all, or one each")
        painter = self.painter(replace(PAPER_EDITING, text_scale=text_scale, image_scale=image_scale), steps)
        with torch.inference_mode():
            drawn = painter.edit([_image(source) for source in sources], texts, _each(seed, len(sources)), progress)
        pictures = _pictures(drawn, painter)
        return pictures[0] if one else pictures

    def ask(
        self,
        question: str,
        image: Image.Image | str | Path | None = None,
        *,
        settings: DecodingSettings | None = None,
        seed: int = 0,
        answer_prefix: str = "",
        stream: Callable[[str], object] | None = None,
    ) -> Answer:
        """The answer to a question, about a picture (or its file) or none.

        settings: longest answer, temperature, top-p; None writes the likeliest tokens, 256 at most; seed: of sampling;
        answer_prefix: what the answer is made to begin with, as chat models expect (it is not part of the answer);
        stream: called with each new piece of text as it is written.
        Raises ValueError for a question longer than the model reads, ImageError for a file that is no picture.
        """
        text = TextStream(self.tokenizer, self.model.config.tokens.eos)
        pieces: list[str] = []

        def add(new: Tensor) -> None:
            if piece := text.add(int(new[0])):
                pieces.append(piece)
                if stream is not None:
                    stream(piece)

        picture = None if image is None else _image(image)
        started = time.perf_counter()
        statistics = self.speculator.statistics = SpeculationStatistics()
        with torch.inference_mode():
            generator = torch.Generator(self.model.device).manual_seed(seed)
            prefix = self.tokenizer.encode(answer_prefix, control=True).tolist()
            context = self.speculator.prefill([question_document(self.model, self.tokenizer, question, picture)])
            self.speculator.decode(context, settings, generator, add, prefix)
        return Answer("".join(pieces), text.count, statistics.passes, time.perf_counter() - started)

    def painter(self, guidance: Guidance, steps: int | None = None) -> Painter:
        """Draws as this pipeline does, and counts what it costs. Warns of what the branch was not made for.

        steps: as in `generate`. Raises ValueError for impossible settings.
        """
        model, info = self.model, self._info or self.model.merged
        if info is None:
            sampler = Sampler(STEPS if steps is None else steps, model.config.timestep_shift, guidance)
            return Painter(model, self.tokenizer, sampler)
        steps = (info.nfe or STEPS) if steps is None else steps
        sampler = Sampler(steps, info.shift, guidance, self._context or info.reader)
        unguided = replace(sampler, guidance=None)
        merged = self._branch is None  # weights that have the scales inside, for which guidance is to be off
        warn_of_misfits(
            self._name or str(model.source), info, unguided if merged and guidance.text_scale <= 1 else sampler
        )
        if merged:
            sampler = unguided
        return Painter(model, self.tokenizer, sampler, self._branch)

    @cached_property
    def speculator(self) -> Speculator:
        """Writes answers, with the draft head if there is one."""
        return Speculator(self.model, self._draft)


def load(
    model: str | Path = "scenes",
    branch: str | Path | None = None,
    draft: str | Path | None = None,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    without: Collection[Part] = (),
    context: Reader | None = None,
) -> Pipeline:
    """A model, ready to draw, edit and answer.

    model: checkpoint folder, or the name of a model that comes with the package, as `scenes`; branch, draft: files of a
    distilled branch and of a draft head, or names such as `scenes/nfe6` and `scenes/draft`; device, dtype: as in
    `Device`; without: parts of the model that are not needed, for memory; context: as of `Pipeline`.
    Raises FileNotFoundError, CheckpointError or ValueError with the file and the remedy.

        pipeline = load("scenes", branch="scenes/nfe6", draft="scenes/draft")
        picture = pipeline.generate("a photo of a red circle")
        print(pipeline.ask("What color is the circle?", picture.image))
    """
    check_files(branch, draft=draft)
    return Pipeline(*load_model(str(model), Device(device, dtype), without), branch, draft, context)


def _each(seed: int | Sequence[int], number: int) -> list[int]:
    seeds = [seed] * number if isinstance(seed, int) else list(seed)
    if len(seeds) != number:
        raise ValueError(f"{len(seeds)} seeds for {number} pictures: give one for all, or one each")
    return seeds


def _image(image: Image.Image | str | Path) -> Image.Image:
    return image if isinstance(image, Image.Image) else load_image(image)


def _pictures(drawn: Sequence[Tensor], painter: Painter) -> list[Picture]:
    """Pictures (3, H, W) uint8, with what each of them cost."""
    cost = painter.cost
    images = [Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()) for picture in drawn]
    return [Picture(image, cost.nfe, cost.seconds_per_image) for image in images]
