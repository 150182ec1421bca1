"""`hyperbagel bench`: what a model costs on the device at hand."""

from __future__ import annotations

import sys

from hyperbagel.cli.explanation import UsageError, did_you_mean
from hyperbagel.cli.options import Bench
from hyperbagel.files import check_file, write_json


def bench(options: Bench) -> None:
    """Speed and memory on the device at hand, beside their limits."""
    only = options.only.replace(",", " ").split()
    check_file(options.out)
    from hyperbagel.bench.run import PARTS, measure

    for name in only:
        if name not in PARTS:
            raise UsageError(f"--only {name}: no such part{did_you_mean(name, tuple(PARTS))} ({', '.join(PARTS)})")
    runtime = options.device
    smaller = runtime.quantize is not None or runtime.offload
    if smaller and "updates" in only:
        raise UsageError("--only updates: stages train on weights that are all there, and not rounded")
    from hyperbagel.bench.subject import Subject, random_model
    from hyperbagel.cli.quiet import leave_out_noise
    from hyperbagel.pipeline.loading import load_model

    leave_out_noise()
    if options.model is None:
        model = random_model(options.preset, runtime)
    else:
        model, _ = load_model(options.model, runtime)
    parts = only or [name for name in PARTS if not (smaller and name == "updates")]
    results = measure(Subject.of(model, runtime, options.quick), parts, lambda line: print(line, file=sys.stderr))
    write_json(options.out, results.content())
    print(results.markdown())
    print(f"\n{options.out}: all figures")
