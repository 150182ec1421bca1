"""`hyperbagel chat`: answers to questions, about pictures or not."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from hyperbagel.pipeline.loading import Device, check_files, load_model


@dataclass(frozen=True)
class Chat:
    """Answer a question about a picture, or without one. The answer appears as it is written.

    Args:
        image: picture file the question is about, or - for none.
        question: what to ask.
        model: checkpoint folder, or the name of a model that comes with the package.
        draft: file of a draft head, which speeds the answer up without changing it.
        answer_prefix: what the model is made to begin its answer with, as chat models expect; it is not shown.
        max_tokens: longest answer.
        temperature: 0 always takes the likeliest token; higher values vary more.
        top_p: sample among the likeliest tokens that together have this probability.
        seed: of the sampling.
        device: where and how to compute.
    """

    image: str
    question: str
    model: str = "scenes"
    draft: str | None = None
    answer_prefix: str = ""
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    device: Device = field(default_factory=Device)


def chat(options: Chat) -> None:
    """Answer a question, about a picture or not."""
    from hyperbagel.bagel.images import load_image
    from hyperbagel.decoding.autoregressive import DecodingSettings
    from hyperbagel.pipeline.pipeline import Pipeline

    check_files(draft=options.draft)
    picture = None if options.image == "-" else load_image(options.image)
    settings = DecodingSettings(options.max_tokens, options.temperature, options.top_p)
    loaded = load_model(options.model, options.device, ("generation", "autoencoder"), options.question)
    answer = Pipeline(*loaded, draft=options.draft).ask(
        options.question,
        picture,
        settings=settings,
        seed=options.seed,
        answer_prefix=options.answer_prefix,
        stream=lambda piece: print(piece, end="", flush=True),
    )
    print(f"\n[{answer.tokens} tokens, {answer.tokens_per_second:.1f} tokens/s]", file=sys.stderr)
