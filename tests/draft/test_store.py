"""Stored features give the training what running the target gives it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from hyperbagel.bagel.branch_checkpoint import base_hash
from hyperbagel.bagel.build.assemble import NANO
from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.segments import DocumentBatch, TextSegment
from hyperbagel.draft.batch import extract_features, needed_entries
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead
from hyperbagel.draft.store import FeatureShards, collate, write_features
from hyperbagel.draft.unroll import unroll
from tests.nano import nano_bagel

CONFIG = dataclasses.replace(NANO, llm=dataclasses.replace(NANO.llm, num_hidden_layers=4, vocab_size=64))


def batches() -> list[DocumentBatch]:
    generator = torch.Generator().manual_seed(0)

    def text(length: int, loss: bool = False) -> TextSegment:
        return TextSegment(torch.randint(5, 64, (length,), generator=generator), loss)

    documents = [[text(2 + i % 3), text(3 + i % 4, True), text(2)] for i in range(6)]
    documents[4] = [text(4)]
    return [
        DocumentBatch(tuple(documents[i : i + 2]), (f"{i}", f"{i + 1}"), ({}, {})) for i in range(0, len(documents), 2)
    ]


def test_a_stored_batch_unrolls_as_the_online_one(tmp_path: Path) -> None:
    model = nano_bagel(CONFIG)
    head = DraftHead.from_target(DraftConfig(zero_init=False), model)
    entries = head.config.entries(CONFIG.llm)
    tokens = write_features(model, batches(), entries, tmp_path, tokens_per_shard=24, dtype=torch.float32)
    shards = FeatureShards(tmp_path, base_hash(model), entries)
    assert shards.keys == ["0", "1", "2", "3", "5"] and len(shards.paths) > 1
    size = sum(path.stat().st_size for path in shards.paths)
    stated = tokens * bytes_per_token(entries, 4, 32, 4)
    assert stated < size < stated + 3000 * len(shards.paths)
    stored = collate([shards[0], shards[1]])
    online = extract_features(model, batches()[0].documents, entries)
    for one, other in zip(unroll(head, stored, 3), unroll(head, online, 3), strict=True):
        torch.testing.assert_close(one.hidden, other.hidden, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.target, other.target)
    with pytest.raises(FileExistsError, match="holds feature shards already"):
        write_features(model, batches(), entries, tmp_path)


def test_features_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = nano_bagel(CONFIG)
    with pytest.raises(FileNotFoundError, match="holds no feature shards"):
        FeatureShards(tmp_path)
    write_features(model, batches(), DraftConfig(kind="eagle3").entries(CONFIG.llm), tmp_path)
    with pytest.raises(CheckpointError, match="another target"):
        FeatureShards(tmp_path, base_hash(nano_bagel(CONFIG, seed=2)))
    with pytest.raises(CheckpointError, match=r"lacks the hidden states \[1, 3\]"):
        FeatureShards(tmp_path, base_hash(model), DraftConfig().entries(CONFIG.llm))


def bytes_per_token(entries: Iterable[int], num_layers: int, width: int, itemsize: int) -> int:
    """As the module's docstring states it."""
    return len(needed_entries(list(entries), num_layers)) * width * itemsize + 8


def test_the_size_of_a_token_is_stated() -> None:
    assert bytes_per_token(range(1, 29), 28, 3584, 2) == 29 * 3584 * 2 + 8  # 208 kB
    assert bytes_per_token((2, 14, 25), 28, 3584, 2) == 5 * 3584 * 2 + 8  # 36 kB
