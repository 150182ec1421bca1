"""`hyperbagel data ...`: shards from open data sets, from own pictures and from the scenes world."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperbagel.datamodules.convert import (
    convert_folder,
    convert_journeydb,
    convert_llava_onevision,
    convert_seed_data_edit,
)
from hyperbagel.datamodules.inspect import inspect_shards
from hyperbagel.datamodules.scenes import write_scenes


def scenes(out: str, split: str = "train", size: int = 10_000, seed: int = 0, shard_size: int = 1000) -> None:
    """Draw samples of the scenes world and write them as shards.

    Args:
        out: folder for the shards.
        split: train or test; some combinations of shapes, colours and relations appear in test only.
        size: number of samples.
        seed: another seed draws other samples.
        shard_size: samples a shard.
    """
    shards = write_scenes(out, split, size, seed, shard_size=shard_size)
    print(f"{out}: {size} samples in {len(shards)} shards")


def inspect(shards: str, out: Path = Path("contact-sheet.png")) -> None:
    """Count what is in shards, and draw a sheet of samples.

    Args:
        shards: a brace pattern such as data/train-{000000..000009}.tar, one file, or a folder.
        out: picture of samples to write.
    """
    print(inspect_shards(shards, out))
    print(f"samples drawn to {out}")


DATA_COMMANDS: dict[str, Callable[..., Any]] = {
    "llava-onevision": convert_llava_onevision,
    "journeydb": convert_journeydb,
    "seed-data-edit": convert_seed_data_edit,
    "folder": convert_folder,
    "scenes": scenes,
    "inspect": inspect,
}
"""Name of a data command -> the function that runs it."""
