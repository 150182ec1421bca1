"""Cost of the parts of speculative decoding on the CPU, for a random model: what decides how much a draft can gain.

    python benchmarks/speculation.py [--layers 12] [--width 160] [--heads 5] [--kv-heads 5] [--vocabulary 648]

Every part is timed in turn in one run; figures are CPU time of the process, least and median over the repeats.
What a draft has to beat is plain decoding by the same fused layers (`Speculator` without a draft, "target pass, 1
tokens" here), not `decode_text` ("Bagel.decode"), which runs the model's own layers one operation after the other.
"break-even" is the acceptance length at which a round of drafting costs as much as plain decoding of its tokens.
Whole answers are measured by the callback `Speculation`.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hyperbagel.bagel.build.assemble import NANO, compose
from hyperbagel.bagel.config import LLMConfig
from hyperbagel.bagel.context import Context, DecodeCache
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import TextSegment
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.cache import RowCache
from hyperbagel.decoding.drafter import Drafter
from hyperbagel.decoding.fused import FusedStack, LogitsHead, RopeTable
from hyperbagel.decoding.parallel import ParallelDrafter
from hyperbagel.decoding.proposal import ProposalSettings
from hyperbagel.decoding.rows import DraftState, Rows
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead

CONTEXT = 96
ROOM = 64
STEPS = 4
HEADS = {
    "hyper, N=2": DraftConfig(zero_init=False),
    "hyper, N=1": DraftConfig(layers=1, zero_init=False),
    "hyper, N=1, Q=1": DraftConfig(layers=1, queries=1, zero_init=False),
    "hyper, N=1, no Dec": DraftConfig(layers=1, decoder=False, zero_init=False),
    "eagle3, N=1": DraftConfig(kind="eagle3", layers=1),
    "parallel, N=1, Q=1": DraftConfig(kind="parallel", layers=1, queries=1, zero_init=False),
}
Work = Callable[[], object]


def random_model(options: argparse.Namespace) -> Bagel:
    llm = LLMConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=options.width * 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
    )
    return compose(dataclasses.replace(NANO, llm=llm))


def plain(model: Bagel, context: Context, ids: Tensor) -> Work:
    """A pass as `decode_text` makes them."""
    cache = DecodeCache(context, ROOM)

    def run() -> object:
        stream = model.decode(ids, cache).streams.und
        cache.advance(-ids.shape[1])
        return model.next_logits(stream).argmax(-1).tolist()

    return run


def verification(model: Bagel, context: Context, ids: Tensor) -> Work:
    """A pass as `Speculator` makes them, with a draft or without."""
    target, cache = FusedStack(list(model.understanding.layers), model.config.llm), RowCache.of(context, ROOM)
    understanding = model.understanding
    logits, embed = LogitsHead(understanding.norm, understanding.lm_head, fuse=True), understanding.embed_tokens.weight
    table = RopeTable(model.config.llm, CONTEXT + ROOM, embed)
    positions = torch.arange(CONTEXT, CONTEXT + ids.shape[1])[None]

    def run() -> object:
        mask = cache.place(ids.shape[1])
        x = torch.nn.functional.embedding(ids, embed)
        stream = target(x, table.at(positions), mask, cache, record=[])
        return logits(stream).argmax(-1).tolist()

    return run


def drafting(model: Bagel, config: DraftConfig) -> dict[str, Work]:
    """Chains, whose difference is the cost of steps, and the rows of accepted tokens; a parallel head does both at
    once."""
    width = model.config.llm.hidden_size
    head = DraftHead.from_target(config, model)
    drafter = (ParallelDrafter if config.kind == "parallel" else Drafter)(head, model, fuse=True)
    table = RopeTable(model.config.llm, CONTEXT + ROOM, drafter.embed)
    state = drafter.empty_state(1, CONTEXT + ROOM)
    hidden, position = torch.randn(1, 1, width), torch.tensor([[CONTEXT]])
    features = {entry: torch.randn(1, STEPS, width) for entry in drafter.entries}
    following, positions = torch.randn(1, STEPS, width), torch.arange(CONTEXT, CONTEXT + STEPS)[None]
    rows = Rows(features, following, positions, [STEPS])

    def afresh() -> DraftState:
        for cache in (state.layers, state.decoder):
            if cache is not None:
                cache.lengths = [CONTEXT]
        return state

    def chain(length: int) -> Work:
        settings = ProposalSettings(length, 0.0, (), DecodingSettings(), None)
        if isinstance(drafter, ParallelDrafter):
            return lambda: drafter.propose(afresh(), rows, table, settings)
        return lambda: drafter.chain(afresh(), hidden, position, table, settings)

    work: dict[str, Work] = {f"chain of {STEPS + 1}": chain(STEPS + 1), "chain of 1": chain(1)}
    if not isinstance(drafter, ParallelDrafter):
        work[f"{STEPS} true rows"] = lambda: drafter.follow(afresh(), rows, table)
    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 12), ("width", 160), ("heads", 5), ("kv-heads", 5), ("vocabulary", 648)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    times: dict[str, list[float]] = {}
    with torch.inference_mode():
        model = random_model(options)
        context = model.prefill([[TextSegment(torch.randint(5, options.vocabulary, (CONTEXT - 2,)))]])
        ids = torch.randint(5, options.vocabulary, (1, STEPS + 2))
        work: dict[str, Work] = {}
        for count in (1, STEPS + 2):
            work[f"Bagel.decode, {count} tokens"] = plain(model, context, ids[:, :count])
            work[f"target pass, {count} tokens"] = verification(model, context, ids[:, :count])
        for name, config in HEADS.items():
            work |= {f"{name}: {part}": run for part, run in drafting(model, config).items()}
        for repeat in range(options.repeats + 10):
            for name, run in work.items():
                start = time.process_time()
                run()
                if repeat >= 10:
                    times.setdefault(name, []).append(1000 * (time.process_time() - start))
    for kind, figure in (("least", min), ("median", statistics.median)):
        summary = {name: figure(values) for name, values in times.items()}
        lines = []
        for name in HEADS:
            longer, shorter = (summary.pop(f"{name}: chain of {n}") for n in (STEPS + 1, 1))
            summary[f"{name}: draft step"] = (longer - shorter) / STEPS
            rows, pass_ = summary.get(f"{name}: {STEPS} true rows", 0.0), "target pass, {} tokens"
            spent = rows + longer + summary[pass_.format(STEPS + 2)]
            lines.append(f"  {name + ': break-even':32s} {spent / summary[pass_.format(1)]:7.2f} tokens")
        print(f"{kind} CPU time in ms\n" + "\n".join(f"  {n:32s} {v:7.3f}" for n, v in sorted(summary.items())))
        print(f"a chain of {STEPS + 1} and its verification, in plain passes\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
