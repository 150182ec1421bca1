"""`hyperbagel chat`: answers to questions, about pictures or not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hyperbagel.cli.options import Chat
from hyperbagel.cli.uncollected import uncollected
from hyperbagel.pipeline.loading import check_files, load_model

if TYPE_CHECKING:
    from PIL import Image

    from hyperbagel.decoding.autoregressive import DecodingSettings
    from hyperbagel.pipeline.pipeline import Pipeline
    from hyperbagel.pipeline.results import Answer


def chat(options: Chat) -> None:
    """Answers to questions, about a picture or not."""
    picture, settings, pipeline = _loaded(options)
    if len(options.questions) > 1:
        _answer_together(pipeline, picture, options, settings)
        return
    if not options.questions:
        _converse(pipeline, picture, options, settings)
        return
    answer = pipeline.ask(
        options.questions[0],
        picture,
        settings=settings,
        seed=options.seed,
        think=options.think,
        answer_prefix=options.answer_prefix,
        stream=_show,
    )
    print()
    _tell_speed([answer])


@uncollected()
def _loaded(options: Chat) -> tuple[Image.Image | None, DecodingSettings, Pipeline]:
    from hyperbagel.decoding.autoregressive import DecodingSettings
    from hyperbagel.pipeline.pipeline import Pipeline

    check_files(draft=options.draft)
    picture = _picture(options.image)
    settings = DecodingSettings(options.max_tokens, options.temperature, options.top_p)
    loaded = load_model(options.model, options.device, ("generation", "autoencoder"), options.questions)
    return picture, settings, Pipeline(*loaded, draft=options.draft).settle(options.device)


def _picture(image: str) -> Image.Image | None:
    from hyperbagel.bagel.images import load_image

    if image == "-":
        return None
    if not Path(image).is_file():
        raise FileNotFoundError(f'{image}: no such picture; name one, or - for none: hyperbagel chat - "QUESTION"')
    return load_image(image)


def _answer_together(
    pipeline: Pipeline, picture: Image.Image | None, options: Chat, settings: DecodingSettings
) -> None:
    answers = pipeline.ask(
        options.questions,
        picture,
        settings=settings,
        seed=options.seed,
        think=options.think,
        answer_prefix=options.answer_prefix,
    )
    for question, answer in zip(options.questions, answers, strict=True):
        print(f"{question}\n{answer}\n")
    _tell_speed(answers)


def _converse(pipeline: Pipeline, picture: Image.Image | None, options: Chat, settings: DecodingSettings) -> None:
    """Answer each line of the standard input, with what was said before in mind."""
    conversation = pipeline.chat(options.answer_prefix)
    if picture is not None:
        conversation.show(picture)
    for question in _lines():
        answer = conversation.ask(question, settings=settings, seed=options.seed, think=options.think, stream=_show)
        print()
        _tell_speed([answer])


def _show(piece: str) -> None:
    print(piece, end="", flush=True)


def _lines() -> Iterator[str]:
    """The questions on the standard input, until it ends; a terminal is asked for them."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _tell_speed(answers: list[Answer]) -> None:
    tokens, seconds = sum(answer.tokens for answer in answers), sum(answer.seconds for answer in answers)
    print(f"[{tokens} tokens, {tokens / seconds:.1f} tokens/s]", file=sys.stderr)
