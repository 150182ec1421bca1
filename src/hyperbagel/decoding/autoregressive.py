"""Plain autoregressive decoding with a key-value cache: greedy or temperature / top-p sampling, in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbagel.bagel.checkpoint import not_finite
from hyperbagel.bagel.context import Context, DecodeCache
from hyperbagel.bagel.model import Bagel

OnTokens = Callable[[Tensor], None]


@dataclass(frozen=True)
class DecodingSettings:
    """How answers are written."""

    max_tokens: int = 256
    """Most new tokens per answer."""
    temperature: float = 0.0
    """Temperature of sampling, 0 is greedy."""
    top_p: float = 1.0
    """Nucleus mass kept when sampling."""
    stop: tuple[int, ...] | None = None
    """Token ids that end an answer, default the model's end of text (none: every answer has max_tokens)."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or not 0 < self.top_p <= 1:
            raise ValueError(f"need max_tokens >= 1 and 0 < top_p <= 1, got {self}")
        # Logits divided by less become infinite.
        if self.temperature != 0 and not 1e-4 <= self.temperature < math.inf:
            raise ValueError(f"need temperature 0 (the likeliest token) or at least 0.0001, got {self.temperature}")


def next_token_probabilities(logits: Tensor, settings: DecodingSettings) -> Tensor:
    """The distribution sampled from: logits (..., V) -> probabilities (..., V), temperature and top-p applied.

    Greedy (temperature 0) is a one-hot distribution. Logits that are no numbers give equal probabilities: whoever asks
    for a distribution also looks at `finite_rows`, after what it has to wait for anyway.
    """
    if settings.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    probabilities = (logits.float() / settings.temperature).softmax(-1).nan_to_num(nan=1 / logits.shape[-1])
    if settings.top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        # The token that crosses the mass is kept, so at least one always is.
        outside = ordered.cumsum(-1) - ordered >= settings.top_p
        probabilities = probabilities.masked_fill(outside.scatter(-1, order, outside), 0.0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def finite_rows(logits: Tensor) -> Tensor:
    """Whether the logits (B, ..., V) of each document have a greatest one that is a number: (B,) bool."""
    return logits.amax(-1).isfinite().reshape(len(logits), -1).all(1)


def require_logits(finite: Tensor, answers: Mapping[int, int], total: int, model: Bagel) -> None:
    """Raises NotFiniteError if what `finite_rows` gave is false for a row that counts. answers: their numbers among the
    `total` ones, by row."""
    known = finite.tolist()
    if bad := [number for row, number in answers.items() if not known[row]]:
        raise not_finite(f"logits of answer {min(bad) + 1} of {total}", model)


def pick_token(logits: Tensor, settings: DecodingSettings, generator: torch.Generator | None = None) -> Tensor:
    """Next tokens (B,) from logits (B, V)."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(next_token_probabilities(logits, settings), 1, generator=generator)[:, 0]


@torch.inference_mode()
def decode_text(
    model: Bagel,
    context: Context,
    settings: DecodingSettings | None = None,
    generator: torch.Generator | None = None,
    on_tokens: OnTokens | None = None,
    prefix: Sequence[int] = (),
) -> list[list[int]]:
    """Answer each document of a context: token ids without the leading bos and without the stop token.

    on_tokens: called with (B,) ids after each step (finished rows go on with garbage); prefix: ids that every answer is
    made to begin with (not part of the result). Raises NotFiniteError for logits that are no numbers.
    """
    settings = settings or DecodingSettings()
    stop = (model.config.tokens.eos,) if settings.stop is None else settings.stop
    cache = DecodeCache(context, settings.max_tokens + len(prefix) + 1)
    batch = context.batch_size
    ids = torch.tensor([[model.config.tokens.bos, *prefix]], device=model.device).expand(batch, -1)
    answers: list[list[int]] = [[] for _ in range(batch)]
    open_rows = set(range(batch))
    for _ in range(settings.max_tokens):
        stream = model.decode(ids, cache).streams.und[:, -1]
        logits = model.next_logits(stream)
        finite, tokens = finite_rows(logits), pick_token(logits, settings, generator)
        chosen = tokens.tolist()
        require_logits(finite, {row: row for row in open_rows}, batch, model)
        if on_tokens is not None:
            on_tokens(tokens)
        for row, token in enumerate(chosen):
            if row in open_rows and token in stop:
                open_rows.discard(row)
            elif row in open_rows:
                answers[row].append(token)
        if not open_rows:
            break
        ids = tokens[:, None]
    return answers
