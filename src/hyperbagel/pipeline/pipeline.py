"""`hyperbagel.load` and `Pipeline`: draw, edit and ask in a few lines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias, overload

from PIL import Image

from hyperbagel.bagel.absent import Part
from hyperbagel.bagel.images import load_image
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION
from hyperbagel.flow.sampler import Reader
from hyperbagel.flow.trajectory import Progress
from hyperbagel.pipeline.answers import question_document
from hyperbagel.pipeline.conversation import Conversation
from hyperbagel.pipeline.device import Device
from hyperbagel.pipeline.engine import Engine
from hyperbagel.pipeline.loading import check_files, load_model
from hyperbagel.pipeline.results import Answer, Picture
from hyperbagel.pipeline.thinking import BEFORE_ANSWER, BEFORE_PICTURE

ImageLike: TypeAlias = Image.Image | str | Path
"""A picture, or its file."""


class Pipeline(Engine):
    """Draws, edits and answers with one model. `load` makes one, with the arguments of `Engine`.

    Text reads the model alone; a distilled branch takes the place of its generation side in denoising, and a draft head
    speeds answers up without changing them. One request at a time.
    """

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
        read = [_image(source) for source in sources]
        documents, sizes = painter.edits(read, texts, BEFORE_PICTURE if think else "")
        pictures = self.draw_after(painter, documents, sizes, _each(seed, len(sources)), think, progress)
        return pictures[0] if one else pictures

    @overload
    def ask(
        self,
        question: str,
        image: ImageLike | None = ...,
        *,
        settings: DecodingSettings | None = ...,
        seed: int = ...,
        think: bool = ...,
        answer_prefix: str = ...,
        stream: Callable[[str], object] | None = ...,
    ) -> Answer: ...

    @overload
    def ask(
        self,
        question: list[str],
        image: ImageLike | Sequence[ImageLike | None] | None = ...,
        *,
        settings: DecodingSettings | None = ...,
        seed: int = ...,
        think: bool = ...,
        answer_prefix: str = ...,
    ) -> list[Answer]: ...

    def ask(
        self,
        question: str | Sequence[str],
        image: ImageLike | Sequence[ImageLike | None] | None = None,
        *,
        settings: DecodingSettings | None = None,
        seed: int = 0,
        think: bool = False,
        answer_prefix: str = "",
        stream: Callable[[str], object] | None = None,
    ) -> Answer | list[Answer]:
        """The answer to a question, about a picture (or its file) or none; or to several, written together.

        image: of several questions one for all, or one each; settings: longest answer, temperature, top-p; None writes
        the likeliest tokens, 256 at most; seed: of sampling; think: have the model write a thought first (models that
        learnt it); answer_prefix: what answers are made to begin with, as chat models expect (it is not part of them);
        stream: called with each new piece of the text of a single answer, its thought included.
        Raises ValueError for a question longer than the model reads, ImageError for a file that is no picture.
        """
        texts = self.read([question] if isinstance(question, str) else question)
        images = [image] * len(texts) if image is None or isinstance(image, ImageLike) else list(image)
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} pictures for {len(texts)} questions: give one for all, or one each")
        pictures = [None if source is None else _image(source) for source in images]
        documents = [
            question_document(self.model, self.tokenizer, text, picture, BEFORE_ANSWER if think else "")
            for text, picture in zip(texts, pictures, strict=True)
        ]
        one = stream if isinstance(question, str) else None
        answers = self.answer_after(documents, settings, seed, answer_prefix, think=think, stream=one)
        return answers[0] if isinstance(question, str) else answers

    def chat(self, answer_prefix: str = "") -> Conversation:
        """A conversation in which pictures are shown, asked about, drawn and edited, turn by turn.

        answer_prefix: as of `ask`.
        """
        return Conversation(self, answer_prefix)


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


def _image(image: ImageLike) -> Image.Image:
    return image if isinstance(image, Image.Image) else load_image(image)
