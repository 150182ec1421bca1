"""How fast the reader delivers documents, and how long a training would wait for it.

python benchmarks/data.py                           # scenes written to shards and drawn on the fly
python benchmarks/data.py --shards 'data/{0..9}.tar' --tokenizer DIR --size 1024 --step 0.5
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path

import torch

from hyperbagel.bagel.images import LATENT_TRANSFORM, VIT_TRANSFORM, ImageTransform
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.datamodules.interleaved import Batching, InterleavedDataModule
from hyperbagel.datamodules.loader import ReaderSettings
from hyperbagel.datamodules.pipeline import Formatting
from hyperbagel.datamodules.scenes import SceneSource, write_scenes
from hyperbagel.datamodules.sources import Source


def endless(module: InterleavedDataModule) -> Iterator[DocumentBatch]:
    """All batches, epoch after epoch."""
    return chain.from_iterable(repeat(module.train_dataloader()))


@dataclass(frozen=True)
class Timing:
    """samples_per_second: by the clock, with no work between batches; cpu_samples_per_second: a second of CPU time of
    this process (all the work if it has no workers); wait_share: of the time, with steps between batches;
    wait_cpu_share: CPU time of this process that goes into getting batches, as a share of the steps."""

    samples_per_second: float
    cpu_samples_per_second: float
    wait_share: float
    wait_cpu_share: float


def measure(module: InterleavedDataModule, options: argparse.Namespace) -> Timing:
    """Read at full speed, then with a training step after each batch."""
    stream = endless(module)
    next(stream)  # start the workers
    documents, begin, cpu = 0, time.perf_counter(), time.process_time()
    for _ in range(options.batches):
        documents += len(next(stream))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu

    waited = waited_cpu = 0.0
    for _ in range(options.step_batches):
        work(options.step, options.busy)
        asked, asked_cpu = time.perf_counter(), time.process_time()
        next(stream)
        waited, waited_cpu = waited + time.perf_counter() - asked, waited_cpu + time.process_time() - asked_cpu
    steps = options.step * options.step_batches
    return Timing(documents / seconds, documents / cpu, waited / (waited + steps), waited_cpu / steps)


def work(seconds: float, busy: bool) -> None:
    """One training step: on a CPU if busy, else elsewhere."""
    matrix, end = torch.ones(256, 256), time.perf_counter() + seconds
    while busy and time.perf_counter() < end:
        matrix @ matrix
    time.sleep(max(0.0, end - time.perf_counter()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="shards to read instead of scenes")
    parser.add_argument("--tokenizer", default=str(Path(__file__).parents[1] / "src/hyperbagel/scenes/tokenizer"))
    parser.add_argument("--size", type=int, default=64, choices=(64, 1024), help="64: scenes, 1024: BAGEL's own rules")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=60, help="batches to time")
    parser.add_argument("--samples", type=int, default=3000, help="scenes to write")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--step", type=float, default=0.3, help="seconds of a training step")
    parser.add_argument("--step-batches", type=int, default=20, help="batches to time with training steps")
    parser.add_argument("--busy", action="store_true", help="compute in the steps instead of sleeping")
    return parser.parse_args()


def sources(options: argparse.Namespace, folder: Path) -> dict[str, Source]:
    if options.shards:
        return {"shards": Source("shards", shards=options.shards)}
    write_scenes(folder / "scenes", size=options.samples)
    drawn = SceneSource(size=options.samples)
    return {
        "shards": Source("shards", shards=str(folder / "scenes")),
        "drawn": Source("drawn", samples=drawn),
    }


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    small = options.size == 64
    formatting = Formatting(
        options.tokenizer,
        latent=ImageTransform(64, 64, 8) if small else LATENT_TRANSFORM,
        vit=ImageTransform(56, 56, 14) if small else VIT_TRANSFORM,
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, source in sources(options, Path(folder)).items():
            for workers in options.workers:
                module = InterleavedDataModule(
                    formatting,
                    train=[source],
                    batching=Batching(options.batch_size),
                    reader=ReaderSettings(workers, cache_dir=folder),
                )
                begin = time.perf_counter()
                module.setup("fit")
                setup = time.perf_counter() - begin
                timing = asdict(measure(module, options))
                timing["supply_over_demand"] = timing["samples_per_second"] * options.step / options.batch_size
                figures = {"setup_seconds": setup, "step_seconds": options.step, **timing}
                row = {"source": name, "workers": workers} | {k: round(v, 4) for k, v in figures.items()}
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
