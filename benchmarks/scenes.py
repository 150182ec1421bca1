"""How fast scenes are drawn and read back, in samples per CPU second of one process.

python benchmarks/scenes.py [--samples 300]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from hyperbagel.evaluation.geneval.scene_detector import parse_scene
from hyperbagel.scenes import KINDS, sample


def rate(work: Callable[[int], object], repeats: int) -> float:
    """Calls per CPU second; the first one, which builds tables, is not counted."""
    work(0)
    start = time.process_time()
    for i in range(1, repeats + 1):
        work(i)
    return repeats / (time.process_time() - start)


def main() -> None:
    """Print a line for each kind of document, and one for the detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=300, help="of each kind (default: %(default)s)")
    samples = parser.parse_args().samples
    for kind in KINDS:
        print(f"draw {kind:12}{rate(lambda i, kind=kind: sample('train', 0, i, kind), samples):10.0f} /s")
    pictures = [sample("test", 0, i, "generation").images["0.png"] for i in range(samples + 1)]
    print(f"detect{'':11}{rate(lambda i: parse_scene(pictures[i]), samples):10.0f} /s")


if __name__ == "__main__":
    main()
