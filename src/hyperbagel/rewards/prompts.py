"""The texts that pictures are scored against."""

from __future__ import annotations

from hyperbagel.bagel.segments import DocumentBatch, ImageSegment, TextSegment
from hyperbagel.bagel.tokenizer import Tokenizer

PROMPT_KEY = "reward_prompt"
"""The entry of a document's meta that says what its picture is to show, where the texts before it do not."""


def reward_prompts(batch: DocumentBatch, tokenizer: Tokenizer | None, prompt_key: str = PROMPT_KEY) -> list[str]:
    """What each document's picture is to show: the meta's `prompt_key`, or for the default one the last text before it.

    Raises ValueError for a document without such a text.
    """
    prompts = []
    for key, meta, document in zip(batch.keys, batch.metas, batch.documents, strict=True):
        if prompt_key in meta:
            prompts.append(str(meta[prompt_key]))
            continue
        if prompt_key != PROMPT_KEY:
            raise ValueError(
                f"document {key} of source {batch.source!r} has no {prompt_key!r} in its meta to score its picture "
                f"against: write one, name its sources only where all have one, or set `prompt_key`"
            )
        last = max(i for i, s in enumerate(document) if isinstance(s, ImageSegment) and s.loss)
        texts = [s.ids for s in document[:last] if isinstance(s, TextSegment)]
        if not texts or tokenizer is None:
            raise ValueError(
                f"document {key} of source {batch.source!r} has no text to score its picture against: "
                f"train without dropping texts, or give its meta a {prompt_key!r}"
            )
        prompts.append(tokenizer.decode(texts[-1]))
    return prompts
