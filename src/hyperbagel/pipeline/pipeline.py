"""`hyperbagel.load` and `Pipeline`: draw, edit and ask in a few lines."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, Self, overload

import torch
from PIL import Image

from hyperbagel.bagel.absent import Part
from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.branch_checkpoint import BranchInfo, load_branch
from hyperbagel.bagel.images import of_uint8
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.quantized import Quantization
from hyperbagel.bagel.segments import Document
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION, Guidance
from hyperbagel.flow.sampler import Reader, Sampler
from hyperbagel.flow.trajectory import Progress
from hyperbagel.pipeline.answering import Answering
from hyperbagel.pipeline.answers import ImageLike, opened
from hyperbagel.pipeline.conversation import Conversation
from hyperbagel.pipeline.device import Runtime
from hyperbagel.pipeline.economy import settle
from hyperbagel.pipeline.loading import check_files, load_model
from hyperbagel.pipeline.painter import Painter, largest_square, warn_of_misfits
from hyperbagel.pipeline.results import Picture
from hyperbagel.pipeline.thinking import BEFORE_PICTURE, LONGEST

STEPS: Final = 50
"""Denoising steps of a teacher, unless told otherwise."""


class Pipeline(Answering):
    """Draws, edits and answers with one model. `load` makes one.

    Text reads the model alone; a distilled branch takes the place of its generation side in denoising, and a draft head
    speeds answers up without changing them. One request at a time.

    Args:
        model: what reads, and without a branch draws.
        tokenizer: the model's.
        branch: file or name of a distilled branch.
        draft: file or name of a draft head, or of phrases.
        context: which branch reads the source pictures of edits; None: as the branch was made for.

    Examples:
        >>> pipeline = load(folder)
        >>> picture = pipeline.generate("a photo of a red circle", steps=2, size=(16, 16))
        >>> picture.image.size, picture.nfe
        ((16, 16), 4)
    """

    def __init__(
        self,
        model: Bagel,
        tokenizer: Tokenizer,
        branch: str | Path | None = None,
        draft: str | Path | None = None,
        context: Reader | None = None,
    ) -> None:
        super().__init__(model, tokenizer, draft)
        self._name = None if branch is None else str(branch)
        self._branch: GenerationBranch | None = None
        self._info: BranchInfo | None = None
        if branch is not None:
            self._branch, self._info = load_branch(branch, model)
        self._context = context

    def settle(self, runtime: Runtime) -> Self:
        """Make the weights as small, and the layers as fast, as is asked for; to be called once, before the first
        request. Raises ImportError for a package that is missing.
        """
        settle_together(runtime, [self])
        return self

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
        think: bool = ...,
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
        think: bool = ...,
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
        think: bool = False,
        progress: Progress | None = None,
    ) -> Picture | list[Picture]:
        """A picture of a prompt, or pictures of several, drawn together.

        steps: of denoising, None for as many as the branch was made for (a teacher: 50); text_scale: strength of the
        guidance, 1 switches it off; seed: of the noise, one for all pictures or one each; size: height and width in
        pixels, None for the model's largest; think: have the model write a thought about each first, by which it then
        draws (models that learnt it); progress: called after each step with (done, steps).
        Raises ValueError for what cannot be drawn.
        """
        texts = self.read([prompts] if isinstance(prompts, str) else prompts)
        painter = self.painter(replace(PAPER_GENERATION, text_scale=text_scale), steps)
        documents = painter.prompts(texts, BEFORE_PICTURE if think else "")
        sizes = [size or self.size] * len(texts)
        pictures = self.draw_after(painter, documents, sizes, _each(seed, len(texts)), think, progress)
        return pictures[0] if isinstance(prompts, str) else pictures

    @overload
    def edit(
        self,
        images: ImageLike,
        instructions: str,
        *,
        steps: int | None = ...,
        text_scale: float = ...,
        image_scale: float = ...,
        seed: int = ...,
        think: bool = ...,
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
        think: bool = ...,
        progress: Progress | None = ...,
    ) -> list[Picture]: ...

    def edit(
        self,
        images: ImageLike | Sequence[ImageLike],
        instructions: str | Sequence[str],
        *,
        steps: int | None = None,
        text_scale: float = PAPER_EDITING.text_scale,
        image_scale: float = PAPER_EDITING.image_scale,
        seed: int | Sequence[int] = 0,
        think: bool = False,
        progress: Progress | None = None,
    ) -> Picture | list[Picture]:
        """A picture changed as an instruction says, or several, each by its own or all by one.

        images: pictures or their files; image_scale: strength of the guidance by the picture; all else as in
        `generate`. Raises ValueError for what cannot be drawn, ImageError for a file that is no picture.
        """
        one = isinstance(images, ImageLike)
        sources = [images] if isinstance(images, ImageLike) else list(images)
        texts = self.read([instructions] * len(sources) if isinstance(instructions, str) else instructions)
        if len(texts) != len(sources):
            raise ValueError(f"{len(texts)} instructions for {len(sources)} pictures: give one for all, or one each")
        painter = self.painter(replace(PAPER_EDITING, text_scale=text_scale, image_scale=image_scale), steps)
        read = [opened(source) for source in sources]
        documents, sizes = painter.edits(read, texts, BEFORE_PICTURE if think else "")
        pictures = self.draw_after(painter, documents, sizes, _each(seed, len(sources)), think, progress)
        return pictures[0] if one else pictures

    def chat(self, answer_prefix: str = "") -> Conversation:
        """A conversation in which pictures are shown, asked about, drawn and edited, turn by turn.

        answer_prefix: as of `ask`.
        """
        return Conversation(self, answer_prefix)

    def draw_after(
        self,
        painter: Painter,
        documents: Sequence[Document],
        sizes: Sequence[tuple[int, int]],
        seeds: Sequence[int],
        think: bool = False,
        progress: Progress | None = None,
    ) -> list[Picture]:
        """The pictures that follow on documents, after a thought about each where it is asked for."""
        if not documents:
            return []
        started = time.perf_counter()
        thoughts = [answer.text for answer in self.answer_after(documents, LONGEST)] if think else None
        with torch.inference_mode():
            drawn = painter.draw(documents, sizes, seeds, progress, thoughts)
        images = [of_uint8(picture) for picture in drawn]
        seconds = (time.perf_counter() - started) / len(images)
        return [
            Picture(image, painter.cost.nfe, seconds, thought)
            for image, thought in zip(images, thoughts or [""] * len(images), strict=True)
        ]

    def painter(self, guidance: Guidance, steps: int | None = None) -> Painter:
        """Draws as this pipeline does, and counts what it costs. Warns of what the branch was not made for.

        steps: as in `generate`. Raises ValueError for impossible settings.
        """
        model, info = self.model, self._info or self.model.merged
        if info is None:
            sampler = Sampler(STEPS if steps is None else steps, model.config.timestep_shift, guidance)
            return Painter(model, self.tokenizer, sampler, offload=self.offload)
        steps = (info.nfe or STEPS) if steps is None else steps
        sampler = Sampler(steps, info.shift, guidance, self._context or info.reader)
        unguided = replace(sampler, guidance=None)
        merged = self._branch is None  # weights that have the scales inside, for which guidance is to be off
        if sampler not in self._told:
            self._told.add(sampler)
            fitting = unguided if merged and guidance.text_scale <= 1 else sampler
            warn_of_misfits(self._name or str(model.source), info, fitting)
        return Painter(model, self.tokenizer, unguided if merged else sampler, self._branch, offload=self.offload)


def settle_together(runtime: Runtime, pipelines: Sequence[Answering]) -> None:
    """`Pipeline.settle` for several that share one model."""
    model = pipelines[0].model
    branches = [p._branch for p in pipelines if isinstance(p, Pipeline) and p._branch is not None]
    offload = settle(runtime, model, branches, [p._draft for p in pipelines if p._draft is not None])
    for pipeline in pipelines:
        pipeline.offload = offload
        pipeline.replayed = runtime.compile and model.device.type == "cuda"


def load(
    model: str | Path = "scenes",
    branch: str | Path | None = None,
    draft: str | Path | None = None,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    without: Collection[Part] = (),
    context: Reader | None = None,
    compile: bool = False,
    offload: bool = False,
    quantize: Quantization | None = None,
) -> Pipeline:
    """A model, ready to draw, edit and answer.

    model: checkpoint folder, or the name of a model that comes with the package, as `scenes`; branch, draft: files of a
    distilled branch and of a draft head (or phrases), or names such as `scenes/nfe6` and `scenes/draft`; device,
    dtype, compile, offload, quantize: as in `Runtime`; without: parts that are not needed, for memory; context: as of
    `Pipeline`.
    Raises FileNotFoundError, CheckpointError or ValueError with the file and the remedy.

        pipeline = load("scenes", branch="scenes/nfe6", draft="scenes/draft")
        picture = pipeline.generate("a photo of a red circle")
        print(pipeline.ask("What color is the circle?", picture.image))

    Examples:
        >>> pipeline = load(folder)
        >>> [p.nfe for p in pipeline.generate(["a red circle", "a blue star"], steps=1, text_scale=1, size=(16, 16))]
        [1, 1]
    """
    check_files(branch, draft=draft)
    runtime = Runtime(device, dtype, compile, offload, quantize)
    return Pipeline(*load_model(str(model), runtime, without), branch, draft, context).settle(runtime)


def _each(seed: int | Sequence[int], number: int) -> list[int]:
    seeds = [seed] * number if isinstance(seed, int) else list(seed)
    if len(seeds) != number:
        raise ValueError(f"{len(seeds)} seeds for {number} pictures: give one for all, or one each")
    return seeds
