"""Lossless speculative decoding: a draft head proposes, the target verifies many tokens in one pass.

Greedy answers are those of plain greedy decoding; sampled ones have exactly the target's distribution.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import torch

from hyperbagel.bagel.context import Context
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, TextSegment
from hyperbagel.bagel.transfer import moved
from hyperbagel.decoding.adaptive import Adaptive
from hyperbagel.decoding.autoregressive import DecodingSettings, OnTokens
from hyperbagel.decoding.contexts import DraftedContext, TextContext
from hyperbagel.decoding.drafter import Drafter
from hyperbagel.decoding.fused import FusedStack, LogitsHead, Norm, RopeTable
from hyperbagel.decoding.parallel import ParallelDrafter
from hyperbagel.decoding.policies import Costs, Work
from hyperbagel.decoding.rows import DraftMemory, Rows
from hyperbagel.decoding.settings import SpeculationSettings
from hyperbagel.decoding.speculative_loop import DecodingRun, Engine
from hyperbagel.decoding.static import StaticRounds, can_be_static, decode_static, rounds_for
from hyperbagel.decoding.statistics import SpeculationStatistics
from hyperbagel.decoding.verify import Randomness
from hyperbagel.draft.head import DraftHead
from hyperbagel.draft.phrases import load_phrases

__all__ = ["ADAPTIVE", "DraftedContext", "SpeculationSettings", "Speculator", "decode_speculative"]

ADAPTIVE: Final = SpeculationSettings(length=32, policy=Adaptive())
"""Long chains that end where the draft becomes unsure, and plain passes where drafting does not pay: the default, as it
suits short answers and long ones."""


class Speculator:
    """Decodes with a target and a draft head, many answers one after another.

    A snapshot of both models' weights. draft: None decodes plainly by the same operations, but for what is looked up;
    fuse: keep joined copies of projections, default on CPUs, where it pays; statistics: filled by `decode`, replaced by
    whoever wants to start anew; static: write greedy answers in rounds of one shape, which a GPU replays
    (`decoding.static`), by chains without a policy; clock: gives the seconds that a policy may decide by.

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
        static: bool = False,
    ) -> None:
        self.model, self.static = model, static
        self._rounds: StaticRounds | None = None
        fuse = model.device.type == "cpu" if fuse is None else fuse
        und, llm = model.understanding, model.config.llm
        self.target = FusedStack(list(und.layers), llm, fuse)
        self.logits = LogitsHead(Norm(und.norm.weight, llm.rms_norm_eps), und.lm_head, fuse)
        self.table = RopeTable(llm, 0, und.embed_tokens.weight)
        self.drafter: Drafter | None = None
        if draft is not None:
            kind = ParallelDrafter if draft.config.kind == "parallel" else Drafter
            self.drafter = kind(draft, model, fuse)
            self.costs = Costs.typical(llm, draft.config)
        self.clock: Callable[[], float] = time.perf_counter
        self._propose_by(speculation or ADAPTIVE)

    def _propose_by(self, speculation: SpeculationSettings) -> None:
        self.speculation = speculation
        self.policy = copy.deepcopy(speculation.decided_by)
        path = None if speculation.lookup is None else speculation.lookup.phrases
        self.phrases = None if path is None else load_phrases(path, self.model.config.llm.vocab_size)
        self.statistics = SpeculationStatistics()

    def proposing(self, speculation: SpeculationSettings) -> Speculator:
        """The same models, with other settings and statistics of their own."""
        other = copy.copy(self)
        other._propose_by(speculation)
        return other

    def without_draft(self) -> Speculator:
        """The same model, decoding plainly, with statistics of its own."""
        other = self.proposing(replace(self.speculation, lookup=None))
        other.drafter = None
        return other

    @torch.no_grad()
    def prefill(self, documents: Sequence[Document], past: Context | None = None) -> Context:
        """As `Bagel.prefill`. The result is a `DraftedContext`, which the draft head reads when something is drafted,
        or one without where there is no draft, `past` was not drafted, or a document is empty; answers are right in any
        case, only slower.
        """
        model, drafter = self.model, self.drafter
        layout = model.layout(model.encode_documents(documents), None if past is None else past.positions)
        output = model.run(layout, past, record_layers=drafter is not None)
        context = Context.of(layout, output, past)
        counts = (layout.host.block[:, : layout.ids.shape[1]] >= 0).sum(1).tolist()
        cache = context.past, context.valid, context.next_position, context.known
        before = past.text if isinstance(past, TextContext) else [[]] * len(counts)
        new = (ids[:count] for ids, count in zip(layout.host.ids.tolist(), counts, strict=True))
        text = [[*old, *ids] for old, ids in zip(before, new, strict=True)]
        known = past.draft if isinstance(past, DraftedContext) else None
        if drafter is None or (past is not None and known is None) or min(counts) < (1 if known else 2):
            return TextContext(*cache, text=text)
        layers = {entry: output.layers[entry].und for entry in {0, *drafter.entries}}
        last = moved(torch.tensor(counts)[:, None] - 1, model.device)
        pick = last[..., None].expand(-1, -1, layers[0].shape[-1])
        pending = {entry: layers[entry].gather(1, pick) for entry in drafter.entries}
        position = layout.und.position
        features = {entry: layers[entry][:, :-1] for entry in drafter.entries}
        rows = Rows(features, layers[0][:, 1:], position[:, :-1], [count - 1 for count in counts])
        state = None
        if known is not None:
            earlier = [] if known.unread is None else [known.unread]
            rows = Rows.joined([*earlier, known.followed(layers[0][:, :1]), rows])
            state = known.state
        memory = DraftMemory(state, rows, pending, position.gather(1, last))
        endings = [_ending(document) for document in documents]
        return DraftedContext(*cache, text=text, draft=memory, endings=endings)

    @torch.inference_mode()
    def decode(
        self,
        context: Context,
        settings: DecodingSettings | None = None,
        generator: Randomness = None,
        on_tokens: OnTokens | None = None,
        prefix: Sequence[int] = (),
    ) -> list[list[int]]:
        """Answer each document of a context, as `decode_text` does and with its arguments.

        generator: of draws, or one for each document; on_tokens: called with (B,) ids once a token, several times a
        verification; -1 for a document that has none.
        """
        settings = settings or DecodingSettings()
        forced = [self.model.config.tokens.bos, *prefix]
        engine = self.engine(settings)
        if self.static and settings.temperature == 0 and can_be_static(engine):
            self._rounds = rounds_for(engine, context, settings, len(forced), self._rounds)
            return decode_static(self._rounds, context, forced, on_tokens)
        return DecodingRun(engine, context, settings, generator, forced).answer(on_tokens)

    def engine(self, settings: DecodingSettings) -> Engine:
        """What a call of decoding works with. The policy is told that one begins."""
        if self.drafter is not None:
            exact = settings.temperature == 0 and self.model.dtype == torch.float32
            length = min(self.speculation.length, self.drafter.longest or self.speculation.length)
            self.policy.begin(Work(length, self.costs, exact))
        layers = self.target, self.logits, self.table, self.drafter
        return Engine(self.model, *layers, self.speculation, self.policy, self.phrases, self.statistics, self.clock)


def _ending(document: Document) -> list[int]:
    """The last tokens of a document: no more than tell questions of one wording from others."""
    last = document[-1]
    return last.ids[-8:].tolist() if isinstance(last, TextSegment) else []


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
