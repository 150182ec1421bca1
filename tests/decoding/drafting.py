"""A nano target, documents of all kinds, and drafts that are random or trained a little on the target's own answers."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Literal

import torch

from hyperbagel.bagel.build.assemble import NANO
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, LatentSegment, TextSegment, ViTSegment
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.policies import Costs
from hyperbagel.draft.batch import extract_features
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead
from hyperbagel.draft.losses import DraftStep, KLDivergence
from hyperbagel.draft.unroll import unroll
from tests.nano import nano_bagel

CONFIG = dataclasses.replace(NANO, llm=dataclasses.replace(NANO.llm, num_hidden_layers=4, vocab_size=64))
SETTINGS = DecodingSettings(max_tokens=24, stop=(7, 9))
AHEAD = 5
COSTS = Costs(start=0.2, step=0.1, verified=0.0)
"""Of drafting, for policies that should decide by nothing else."""


@cache
def target() -> Bagel:
    return nano_bagel(CONFIG)


def documents(count: int, seed: int = 0) -> list[Document]:
    """Questions about a picture, without one, behind a clean latent, and of a second turn, all of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def text(length: int) -> TextSegment:
        return TextSegment(torch.randint(10, 64, (length,), generator=generator))

    def document(i: int) -> Document:
        picture = ViTSegment(torch.rand(3, 16, 16 + 8 * (i % 2), generator=generator))
        latent = LatentSegment(torch.randn(4, 4, 2 + 2 * (i % 2), generator=generator))
        kinds: list[Document] = [
            [picture, text(2 + i % 5)],
            [text(3 + i % 4)],
            [latent, picture, text(2)],
            [picture, text(3), text(4), text(1 + i % 3)],
        ]
        return kinds[i % 4]

    return [document(i) for i in range(count)]


@cache
def draft(kind: Literal["hyper", "parallel", "eagle3"], trained: bool, reduced: bool = False) -> DraftHead:
    """A head whose proposals are at times accepted, at times not."""
    model = target()
    vocabulary = range(0, 64, 2) if reduced else None
    config = DraftConfig(kind=kind, layers=1 if kind == "eagle3" else 2, zero_init=trained, ahead=AHEAD)
    head = DraftHead.from_target(config, model, vocabulary, seed=1)
    if not trained:
        return head.eval()
    asked = documents(12)
    answers = decode_text(model, model.prefill(asked), SETTINGS)
    learnt = [[*d, TextSegment(torch.tensor(a), loss=True)] for d, a in zip(asked, answers, strict=True)]
    batch = extract_features(model, learnt, config.entries(CONFIG.llm))
    optimizer, loss = torch.optim.AdamW(head.parameters(), lr=3e-3), KLDivergence()
    ids = torch.arange(64) if head.vocabulary is None else head.vocabulary
    for _ in range(100):
        terms = [
            loss(DraftStep(step.number, head.logits(step.hidden), model.next_logits(step.target)[:, ids].detach()))
            for step in unroll(head, batch, AHEAD if kind == "parallel" else 3)
        ]
        optimizer.zero_grad()
        torch.stack(terms).sum().backward()
        optimizer.step()
    return head.eval()
