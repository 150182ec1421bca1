"""Small training and evaluation runs: a nano model folder, documents of the scenes world, a quiet trainer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from hyperbagel.bagel.images import ImageTransform
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.datamodules.interleaved import Batching, InterleavedDataModule
from hyperbagel.datamodules.loader import ReaderSettings
from hyperbagel.datamodules.pipeline import CondDropout, Formatting
from hyperbagel.datamodules.scenes import SceneSource
from hyperbagel.datamodules.sources import Source
from hyperbagel.scenes.vocabulary import tokenizer_folder
from tests.nano import nano_bagel

PICTURES = ImageTransform(max_size=32, min_size=16, stride=8)
"""Scenes at half their size: 4 x 4 latent tokens of the nano model."""


def nano_folder(folder: Path) -> str:
    """A checkpoint folder of a nano model with random weights everywhere."""
    nano_bagel().save_pretrained(folder)
    Tokenizer.from_pretrained(tokenizer_folder()).save_pretrained(folder)
    return str(folder)


def scenes(kinds: Mapping[str, float], batch_size: int = 2, held_out: int = 4) -> InterleavedDataModule:
    """Documents of the given kinds; `held_out` of them for validation and test each."""

    def source(name: str, split: str, size: int) -> list[Source]:
        return [Source(name, samples=SceneSource(split, size, weights=dict(kinds)))]

    return InterleavedDataModule(
        Formatting(str(tokenizer_folder()), latent=PICTURES, vit=PICTURES),
        train=source("scenes", "train", 64),
        val=source("scenes", "test", held_out),
        test=source("scenes", "test", held_out),
        batching=Batching(batch_size=batch_size),
        dropout=CondDropout(0.1, 0.1, 0.1),
        reader=ReaderSettings(num_workers=0),
    )


def trainer(folder: Path, **options: Any) -> L.Trainer:
    """One that writes nothing but what a test asks for."""
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
    }
    return L.Trainer(default_root_dir=folder, **(quiet | options))
