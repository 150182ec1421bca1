"""Shards, a tokenizer and a data module of test size."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hyperbagel.bagel.images import ImageTransform
from hyperbagel.bagel.tokenizer import SPECIAL_TOKENS
from hyperbagel.datamodules.interleaved import Batching, InterleavedDataModule
from hyperbagel.datamodules.loader import ReaderSettings
from hyperbagel.datamodules.pipeline import CondDropout, Formatting
from hyperbagel.datamodules.sources import Source
from tests.datamodules.samples import write_shards

BATCHING = Batching(batch_size=3, window=4, seed=5)
DROPOUT = CondDropout()


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A byte-level tokenizer: one token a byte."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def formatting(tokenizer_dir: str) -> Formatting:
    return Formatting(tokenizer_dir, latent=ImageTransform(32, 16, 8), vit=ImageTransform(28, 14, 14))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[Path]]:
    """43 generation, 21 editing and 10 understanding documents."""
    folder = tmp_path_factory.mktemp("shards")
    sizes = {"generation": 43, "editing": 21, "understanding": 10}
    return {kind: write_shards(folder, kind, samples) for kind, samples in sizes.items()}


@pytest.fixture
def make_module(formatting: Formatting, tmp_path: Path) -> Callable[..., InterleavedDataModule]:
    """A module over lists of shards by name, with the cache in a temporary folder."""

    def make(
        train: Mapping[str, list[Path]],
        *,
        batching: Batching = BATCHING,
        workers: int = 0,
        weights: Mapping[str, float] | None = None,
        dropout: CondDropout = DROPOUT,
        max_skipped: int = 0,
        **options: object,
    ) -> InterleavedDataModule:
        sources = [
            Source(name, [str(path) for path in paths], weight=(weights or {}).get(name))
            for name, paths in train.items()
        ]
        reader = ReaderSettings(workers, prefetch=2, max_skipped=max_skipped, cache_dir=str(tmp_path / "cache"))
        return InterleavedDataModule(
            formatting, train=sources, batching=batching, dropout=dropout, reader=reader, **options
        )

    return make
