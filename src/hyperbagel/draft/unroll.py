"""Training-time test (EAGLE-3): the draft is unrolled as it will be when it decodes, on its own features.

The places ahead of a parallel head are steps too: they differ in what enters the first layer alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hyperbagel.bagel.embeddings import Rotation
from hyperbagel.bagel.transfer import moved
from hyperbagel.draft.batch import FeatureBatch, chain_rows
from hyperbagel.draft.head import DraftHead


class UnrolledStep(NamedTuple):
    """One unroll step's counting rows, R in all.

    number: of the step, from 0; hidden: (R, D) draft features before the final norm; target: (R, D) the target's
    residual stream at the position whose prediction they imitate; place: (R,) number of this position in the batch
    (of B * N); row: (R,) number of the row among those of step 0.
    """

    number: int
    hidden: Tensor
    target: Tensor
    place: Tensor
    row: Tensor


@dataclass
class _FirstStep:
    """Keys and values of step 0, all rows; one pair a layer."""

    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.pairs.append((k, v))
        return k, v


def unroll(head: DraftHead, batch: FeatureBatch, steps: int) -> Iterator[UnrolledStep]:
    """The draft's steps 0 ... steps - 1 over a batch; steps without any counting row are left out.

    Step 0 covers every row, since all of them are context to later ones; later steps only rows that count. There is
    one softmax over the keys of step 0 up to the row and, for each later step, the row's own key; each layer has its
    own.

    Examples:
        >>> from hyperbagel.draft.batch import extract_features
        >>> from hyperbagel.draft.config import DraftConfig
        >>> from hyperbagel.draft.head import DraftHead
        >>> head = DraftHead.from_target(DraftConfig(), model)
        >>> batch = extract_features(model, answers.documents, head.config.entries(model.config.llm), answers.keys)
        >>> [step.number for step in unroll(head, batch, steps=3)]
        [0, 1]
    """
    counts = chain_rows(batch.labels, steps)
    if not bool(counts.any()):
        return
    rows, index = _pack(counts[0])
    length, device = batch.labels.shape[1], batch.final.device
    # What counts is told by the labels, which are on the host: a GPU is never asked.
    places, number = torch.arange(len(index))[:, None], (rows.flatten().cumsum(0) - 1).view_as(rows)
    samples, index_there = moved(places, device), moved(index, device)
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    rope = head.rope(batch.position)
    feature = head.features(batch.layers, rope, causal[None, None])
    first = _FirstStep()
    following = torch.roll(batch.embedded, -1, dims=1)  # the last row has no successor, and never counts
    hidden = head(following, feature, rope, causal[None, None], first)[samples, index_there]
    start = hidden if head.ahead_embedding is None else head.fuse(following, feature)[0][samples, index_there]
    seen = causal[index_there][:, None]  # (B, 1, M, N)
    own: list[list[tuple[Tensor, Tensor]]] = [[] for _ in head.layers]
    for i in range(steps):
        if i:
            ahead = (index_there + 1 + i).clamp(max=length - 1)
            rope = head.rope(batch.position[samples, index_there] + i)
            inputs = head.later(i, start, batch.embedded[samples, ahead], hidden)
            hidden = _later_step(head, inputs, rope, first.pairs, own, seen)
        counting = counts[i][places, index] & rows
        if not bool(counting.any()):
            return
        chosen = moved(counting.flatten().nonzero()[:, 0], device)
        place = moved((places * length + (index + 1 + i).clamp(max=length - 1))[counting], device)
        row = moved(number[counting], device)
        yield UnrolledStep(i, hidden.flatten(0, 1)[chosen], batch.final.flatten(0, 1)[place], place, row)


def _pack(valid: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N) bool -> (B, M) bool and (B, M) int64: the rows that count, moved to the front."""
    order = torch.argsort(~valid, dim=1, stable=True)[:, : int(valid.sum(1).max())]
    return valid.gather(1, order), order


def _later_step(
    head: DraftHead,
    inputs: tuple[Tensor, Tensor],
    rope: Rotation,
    first: list[tuple[Tensor, Tensor]],
    own: list[list[tuple[Tensor, Tensor]]],
    seen: Tensor,
) -> Tensor:
    """One step for packed rows; appends its keys and values to `own`. inputs: as `head.later` gives them."""
    x, read = inputs
    for i, layer in enumerate(head.decoder_layers):
        q, k, v = layer.input(read if i == 0 else x, rope)
        own[i].append((k, v))
        x = layer.output(x, attend_unrolled(q, first[i], own[i], seen))
    return x


def attend_unrolled(q: Tensor, first: tuple[Tensor, Tensor], own: list[tuple[Tensor, Tensor]], seen: Tensor) -> Tensor:
    """One softmax over shared keys and each row's own ones.

    q: (B, H, M, d); first: keys and values (B, Hkv, N, d); own: of each later step (B, Hkv, M, d);
    seen: (B, 1, M, N) bool -> (B, M, H * d).
    """
    keys, values = first
    q = q.unflatten(1, (keys.shape[1], -1)) * q.shape[-1] ** -0.5  # (B, Hkv, G, M, d)
    shared = (q @ keys[:, :, None].transpose(-1, -2)).masked_fill(~seen[:, :, None], float("-inf"))
    single = [(q * k[:, :, None]).sum(-1, keepdim=True) for k, _ in own]
    weights = torch.cat([shared, *single], dim=-1).softmax(-1)
    attended = weights[..., : keys.shape[2]] @ values[:, :, None]
    for j, (_, v) in enumerate(own):
        attended = attended + weights[..., keys.shape[2] + j, None] * v[:, :, None]
    return attended.flatten(1, 2).transpose(1, 2).flatten(2)
