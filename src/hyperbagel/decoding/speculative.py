"""Lossless speculative decoding: a draft head proposes, the target verifies many tokens in one pass.

Greedy answers are those of plain greedy decoding; sampled ones have exactly the target's distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from hyperbagel.bagel.context import Context
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document
from hyperbagel.decoding.autoregressive import DecodingSettings, OnTokens
from hyperbagel.decoding.drafter import Drafter, DraftState, Rows
from hyperbagel.decoding.fused import FusedStack, LogitsHead, Norm, RopeTable
from hyperbagel.decoding.speculative_loop import DecodingRun, DraftedContext, Engine, SpeculationSettings
from hyperbagel.decoding.statistics import SpeculationStatistics
from hyperbagel.draft.head import DraftHead

__all__ = ["ADAPTIVE", "DraftedContext", "SpeculationSettings", "Speculator", "decode_speculative"]

ADAPTIVE: Final = SpeculationSettings(length=24, min_confidence=0.5)
"""Long chains that end where the draft becomes unsure: the default, as it suits short answers and long ones."""


class Speculator:
    """Decodes with a target and a draft head, many answers one after another.

    A snapshot of both models' weights. draft: None decodes plainly by the same operations; fuse: keep joined copies of
    projections, default on CPUs, where it pays; statistics: filled by `decode`, replaced by whoever wants to start
    anew.

    Examples:
        >>> from hyperbagel.decoding.autoregressive import DecodingSettings
        >>> speculator = Speculator(model)
        >>> (answer,) = speculator.decode(speculator.prefill([document]), DecodingSettings(4))
        >>> len(answer) <= 4
        True
    """

    def __init__(
        self,
        model: Bagel,
        draft: DraftHead | None = None,
        speculation: SpeculationSettings | None = None,
        fuse: bool | None = None,
    ) -> None:
        self.model = model
        self.speculation = speculation or ADAPTIVE
        fuse = model.device.type == "cpu" if fuse is None else fuse
        und, llm = model.understanding, model.config.llm
        self.target = FusedStack(list(und.layers), llm, fuse)
        self.logits = LogitsHead(Norm(und.norm.weight, llm.rms_norm_eps), und.lm_head, fuse)
        self.drafter = None if draft is None else Drafter(draft, model, fuse)
        self.statistics = SpeculationStatistics()

    @torch.no_grad()
    def prefill(self, documents: Sequence[Document], past: Context | None = None) -> Context:
        """As `Bagel.prefill`, and the draft head reads along. The result is a `DraftedContext`, or a plain one where
        there is no draft, `past` was not drafted, or a document is empty; answers are right in any case, only
        slower.
        """
        model, drafter = self.model, self.drafter
        layout = model.layout(model.encode_documents(documents), None if past is None else past.next_position)
        output = model.run(layout, past, record_layers=drafter is not None)
        context = Context.of(layout, output, past)
        counts = (layout.und.block >= 0).sum(1).tolist()
        known = past.draft if isinstance(past, DraftedContext) else None
        if drafter is None or (past is not None and known is None) or min(counts) < (1 if known else 2):
            return context
        layers = {entry: output.layers[entry].und for entry in {0, *drafter.entries}}
        last = torch.tensor(counts, device=model.device)[:, None] - 1
        pick = last[..., None].expand(-1, -1, layers[0].shape[-1])
        pending = {entry: layers[entry].gather(1, pick) for entry in drafter.entries}
        rows = _context_rows(layers, layout.und.position, counts, known)
        batch, new = rows.position.shape
        state = drafter.empty_state(batch, new) if known is None else known.copy(new)
        table = RopeTable(model.config.llm, int(layout.und.position.max()) + 1, drafter.embed)
        drafter.follow(state, rows, table)
        state = DraftState(state.layers, state.decoder, pending, layout.und.position.gather(1, last))
        return DraftedContext(context.past, context.valid, context.next_position, state)

    @torch.inference_mode()
    def decode(
        self,
        context: Context,
        settings: DecodingSettings | None = None,
        generator: torch.Generator | None = None,
        on_tokens: OnTokens | None = None,
        prefix: Sequence[int] = (),
    ) -> list[list[int]]:
        """Answer each document of a context, as `decode_text` does and with its arguments.

        on_tokens: called with (B,) ids once a token, several times a verification; -1 for a document that has none.
        """
        engine = Engine(self.model, self.target, self.logits, self.drafter, self.speculation, self.statistics)
        run = DecodingRun(engine, context, settings or DecodingSettings(), generator)
        return run.answer([self.model.config.tokens.bos, *prefix], on_tokens)


def decode_speculative(
    model: Bagel,
    draft: DraftHead,
    context: Context,
    settings: DecodingSettings | None = None,
    generator: torch.Generator | None = None,
    on_tokens: OnTokens | None = None,
    prefix: Sequence[int] = (),
    speculation: SpeculationSettings | None = None,
) -> list[list[int]]:
    """`decode_text` with a draft head. For many answers keep a `Speculator`, and prefill with it, so that the draft
    knows the context too."""
    return Speculator(model, draft, speculation).decode(context, settings, generator, on_tokens, prefix)


def _context_rows(layers: dict[int, Tensor], position: Tensor, counts: list[int], known: DraftState | None) -> Rows:
    """The rows of new context tokens that know their successor: all but each document's last one, after the one that
    waited before."""
    embedded = layers[0]
    features = {entry: value[:, :-1] for entry, value in layers.items()}
    if known is None:
        return Rows(features, embedded[:, 1:], position[:, :-1], [count - 1 for count in counts])
    features = {entry: torch.cat([value, features[entry]], 1) for entry, value in known.pending.items()}
    return Rows(features, embedded, torch.cat([known.position, position[:, :-1]], 1), counts)
