"""`hyperbagel chat`."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from hyperbagel.cli.loading import Device, load_model


@dataclass(frozen=True)
class Chat:
    """Answer a question about a picture, or without one. The answer appears as it is written.

    Args:
        image: picture file the question is about, or - for none.
        question: what to ask.
        model: checkpoint folder, or the name of a model that comes with the package.
        draft: file of a draft head, which speeds the answer up without changing it.
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
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    device: Device = field(default_factory=Device)


def chat(options: Chat) -> None:
    """Run `hyperbagel chat`."""
    import torch

    from hyperbagel.bagel.images import load_image
    from hyperbagel.bagel.segments import Segment, TextSegment, ViTSegment
    from hyperbagel.decoding.autoregressive import DecodingSettings
    from hyperbagel.decoding.speculative import Speculator
    from hyperbagel.draft.checkpoint import load_draft

    picture = None if options.image == "-" else load_image(options.image)
    settings = DecodingSettings(options.max_tokens, options.temperature, options.top_p)
    bagel, tokenizer = load_model(options.model, options.device)
    document: list[Segment] = [TextSegment(tokenizer.encode(options.question))]
    if picture is not None:
        document.insert(0, ViTSegment(bagel.config.vit_transform(picture).to(bagel.device, bagel.dtype)))
    tokens: list[int] = []
    shown = 0

    def show(new: torch.Tensor) -> None:
        nonlocal shown
        if int(new[0]) < 0:
            return
        tokens.append(int(new[0]))
        if tokens[-1] == bagel.config.tokens.eos:
            return
        text = tokenizer.decode(tokens)
        if not text.endswith("\ufffd"):  # a character may need several tokens
            sys.stdout.write(text[shown:])
            sys.stdout.flush()
            shown = len(text)

    started = time.perf_counter()
    with torch.inference_mode():
        generator = torch.Generator(bagel.device).manual_seed(options.seed)
        head = None if options.draft is None else load_draft(options.draft, bagel)
        speculator = Speculator(bagel, head)
        speculator.decode(speculator.prefill([document]), settings, generator, show)
    seconds = time.perf_counter() - started
    print(f"\n[{len(tokens)} tokens, {len(tokens) / seconds:.1f} tokens/s]", file=sys.stderr)
