"""Training batches of draft heads: the target's hidden states over a batch of documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hyperbagel.bagel.layout import IGNORED
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, LatentSegment, Segment
from hyperbagel.bagel.transfer import moved


@dataclass(frozen=True)
class FeatureBatch:
    """The understanding stream of documents in their order, padded on the right.

    layers: entry of `MoTOutput.layers` -> (B, N, D), always with entry 0 (the embeddings) and the last one (before the
    final norm); position: (B, N) rope positions; labels: (B, N) next-token labels, IGNORED where nothing is answered;
    they stay on the host, where rows are chosen by them; keys: names of the documents.
    """

    layers: dict[int, Tensor]
    position: Tensor
    labels: Tensor
    keys: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def embedded(self) -> Tensor:
        """(B, N, D) what each token is to the first layer: embeddings of text, vision tokens of images."""
        return self.layers[0]

    @property
    def final(self) -> Tensor:
        """(B, N, D) residual stream after the last layer."""
        return self.layers[max(self.layers)]

    def cast(self, dtype: torch.dtype) -> FeatureBatch:
        """The same batch with hidden states of another type."""
        return replace(self, layers={entry: value.to(dtype) for entry, value in self.layers.items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> FeatureBatch:
        """The same batch on `device` (Lightning calls this)."""
        place = torch.device(device)
        return replace(
            self,
            layers={entry: moved(value, place) for entry, value in self.layers.items()},
            position=moved(self.position, place),
        )


def needed_entries(entries: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """The entries that a batch holds for a head that reads `entries`: embeddings and final states besides."""
    return tuple(sorted({0, num_layers, *entries}))


@torch.no_grad()
def extract_features(
    model: Bagel, documents: Sequence[Document], entries: Sequence[int], keys: Sequence[str] = ()
) -> FeatureBatch:
    """Run the frozen target over documents. entries: those that the head reads.

    Images to be generated are taken as clean: text after them is about the finished picture.
    """
    layout = model.layout(_clean(model, documents))
    output = model.run(layout, record_layers=True)
    wanted = needed_entries(entries, model.config.llm.num_hidden_layers)
    return FeatureBatch(
        {entry: output.layers[entry].und for entry in wanted}, layout.und.position, layout.host.labels, tuple(keys)
    )


def _clean(model: Bagel, documents: Sequence[Document]) -> list[list[Segment]]:
    return [
        [replace(s, loss=False) if isinstance(s, LatentSegment) else s for s in document]
        for document in model.encode_documents(documents)
    ]


def chain_rows(labels: Tensor, steps: int) -> Tensor:
    """Which rows count at which unroll step: (steps, B, N) bool.

    Row t at step i is about the target's prediction at position t + 1 + i, so the mask moves with the targets. A row
    counts as long as all its predictions so far lie in one answer: decoding never drafts across a question.
    """
    answered = labels != IGNORED
    rows = torch.zeros(steps, *labels.shape, dtype=torch.bool, device=labels.device)
    valid = torch.ones_like(answered)
    for i in range(min(steps, labels.shape[1] - 1)):
        shifted = torch.zeros_like(answered)
        shifted[:, : -1 - i] = answered[:, 1 + i :]
        valid = valid & shifted
        rows[i] = valid
    return rows
