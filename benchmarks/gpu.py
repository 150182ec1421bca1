"""All that `hyperbagel bench` measures of 7B on one GPU, in a quarter of an hour: as it is, compiled, rounded.

    python benchmarks/gpu.py [--model FOLDER | --preset 7b] [--minutes 13] [--out gpu] [--device auto]

Each line of the plan below is a run of `hyperbagel bench` in a process of its own, whose table is printed, and whose
figures are OUT/NAME.json. What the time does not suffice for is left out, and told of. The last table says what was
hoped for, and what was reached; it is OUT/summary.md too. `--preset nano --device cpu` tries everything in a minute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

PLAN: Final[Mapping[str, str]] = {
    "plain": "--quick",
    "compiled": "--quick --compile --only pass,pictures",
    "fp8": "--quick --quantize fp8 --compile --only pass",
    "int8": "--quick --quantize int8 --only pass,pictures,answers",
    "nf4": "--quick --quantize nf4 --offload --only pass,pictures,edits",
    "compiled_edits": "--quick --compile --only edits",
}
"""Name -> options of `hyperbagel bench`, the most wanted first."""

Results = Mapping[str, Mapping[str, Any]]
"""Name -> what bench.json holds."""
GIB = 2**30


def record(results: Results, run: str, part: str, **wanted: object) -> Mapping[str, Any]:
    """The figures of one measurement. Raises LookupError where it was not made, or failed."""
    for figures in results[run][part]:
        if all(figures.get(key) == value for key, value in wanted.items()) and "error" not in figures:
            return figures
    raise LookupError(wanted)


def seconds(results: Results, evaluations: int) -> float:
    """From prompt to pixels, of one picture, compiled."""
    return record(results, "compiled", "pictures", evaluations=evaluations, batch=1)["seconds"]


def rounded_pass(results: Results) -> float:
    """Time of a pass in fp8, over that of one in bfloat16, both compiled."""
    return record(results, "fp8", "pass")["ms"] / record(results, "compiled", "pass")["ms"]


def share_of_bandwidth(results: Results) -> float:
    """Of tokens that are replayed, over what reading the weights allows."""
    plain, replayed = (record(results, "plain", "answers", what=what, batch=1) for what in ("plain", "plain, replayed"))
    return replayed["tokens_per_second"] / plain["limit_tokens_per_second"]


def round_in_tokens(results: Results) -> float:
    """Time of a replayed round of a chain of four, in that of a replayed token."""
    chain, token = (
        record(results, "plain", "answers", what=what, batch=1)["ms_per_round"]
        for what in ("chain of 4, replayed", "plain, replayed")
    )
    return chain / token


def largest_update(results: Results) -> float:
    """The most memory of an update of any stage, in GiB."""
    return max(figures["peak_bytes"] for figures in results["plain"]["updates"]) / GIB


def worst_plan(results: Results) -> float:
    """How far the plan of any stage's memory is off."""
    return max(abs(f["planned_bytes"] / f["peak_bytes"] - 1) for f in results["plain"]["updates"])


def picture_peak(run: str) -> Callable[[Results], float]:
    """Memory of a picture in 6 evaluations, in GiB."""
    return lambda results: record(results, run, "pictures", evaluations=6, batch=1)["peak_bytes"] / GIB


TARGETS: Final[tuple[tuple[str, str, Callable[[Results], float], float], ...]] = (
    ("compiled pass, share of the matmul peak", ">=", lambda r: record(r, "compiled", "pass")["share_of_matmul"], 0.85),
    ("100 evaluations, s", "<", lambda r: seconds(r, 100), 9.5),
    ("6 evaluations, s", "<", lambda r: seconds(r, 6), 0.65),
    ("1 evaluation, s", "<", lambda r: seconds(r, 1), 0.2),
    ("fp8 pass / bfloat16 pass", "<=", rounded_pass, 0.65),
    ("plain tokens, share of the bandwidth", ">=", share_of_bandwidth, 0.8),
    ("round of a chain of 4, in plain tokens", "<=", round_in_tokens, 1.5),
    ("so 3.77 tokens a round are faster by", ">=", lambda r: 3.77 / round_in_tokens(r), 2.5),
    ("an update of any stage, GiB", "<", largest_update, 80),
    ("its plan, off by", "<=", worst_plan, 0.1),
    ("picture in nf4, GiB", "<", picture_peak("nf4"), 12),
    ("picture in int8, GiB", "<", picture_peak("int8"), 20),
)
"""What was hoped for on an H200: in words, how it is compared, where it is found, and the figure."""


def summary(results: Results) -> str:
    """What was hoped for beside what was reached, as a table in Markdown."""
    lines = ["| | hoped for | reached | |", "|---|---|---|---|"]
    for words, sign, find, hoped in TARGETS:
        try:
            reached = find(results)
        except (LookupError, ValueError):
            lines.append(f"| {words} | {sign} {hoped:g} | not measured | |")
            continue
        met = reached <= hoped if sign == "<=" else reached < hoped if sign == "<" else reached >= hoped
        lines.append(f"| {words} | {sign} {hoped:g} | {reached:.3g} | {'yes' if met else 'no'} |")
    return "\n".join(lines)


def measure(name: str, options: argparse.Namespace, left: float) -> dict[str, Any] | None:
    """Run one line of the plan in at most so many seconds; its figures, or None if it failed."""
    out = options.out / f"{name}.json"
    subject = ["--preset", options.preset] if options.model is None else ["--model", options.model]
    command = [sys.executable, "-c", "from hyperbagel.cli import main; main()", "bench", *subject]
    command += [*PLAN[name].split(), "--device", options.device, "--out", str(out)]
    print(f"\n## {name}: hyperbagel bench {' '.join([*subject, *PLAN[name].split()])}", flush=True)
    try:
        done = subprocess.run(command, timeout=left)
    except subprocess.TimeoutExpired:
        print(f"{name}: stopped, as its time was over", flush=True)
        return None
    found: dict[str, Any] | None = json.loads(out.read_text()) if done.returncode == 0 else None
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure what the time allows, and say what was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--preset", default="7b")
    parser.add_argument("--minutes", type=float, default=13)
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", choices=PLAN, default=list(PLAN), help="lines of the plan")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    results: dict[str, dict[str, Any]] = {}
    for name in options.only:
        left = end - time.monotonic()
        found = measure(name, options, left) if left > 0 else print(f"\n## {name}: left out, as the time is over")
        if found is not None:
            results[name] = found
            (options.out / "summary.md").write_text(summary(results) + "\n")
    print(f"\n{summary(results)}")


if __name__ == "__main__":
    main()
