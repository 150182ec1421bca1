"""`hyperbagel data ...`: shards of the scenes world, and what is in shards."""

from __future__ import annotations

from pathlib import Path

from hyperbagel.files import check_folder


def scenes(
    out: str,
    split: str = "train",
    size: int = 10_000,
    seed: int = 0,
    weights: dict[str, float] | None = None,
    shard_size: int = 1000,
) -> None:
    """Draw samples of the scenes world and write them as shards.

    Args:
        out: folder for the shards.
        split: train, val or test; some combinations of shapes, colours and relations appear in val or test only.
        size: number of samples.
        seed: another seed draws other samples.
        weights: share of each kind of document, as in {caption: 2, dialogue: 1}; default a mix of all kinds.
        shard_size: samples per shard.
    """
    from hyperbagel.datamodules.scenes import write_scenes

    check_folder(out)
    shards = write_scenes(out, split, size, seed, weights, shard_size)
    print(f"{out}: {size} samples in {len(shards)} shards")


def inspect(shards: str, out: Path = Path("contact-sheet.png"), tokenizer: str | None = None) -> None:
    """Count what is in shards, and draw a sheet of samples.

    Args:
        shards: a brace pattern such as data/train-{000000..000009}.tar, one file, or a folder.
        out: picture of samples to write.
        tokenizer: model of a small world, by name or folder, such as scenes: count the words that it has no token for.
    """
    from hyperbagel.bagel.tokenizer import Tokenizer
    from hyperbagel.datamodules.inspect import inspect_shards

    read = None if tokenizer is None else Tokenizer.from_pretrained(tokenizer)
    print(inspect_shards(shards, out, tokenizer=read))
    print(f"samples drawn to {out}")
