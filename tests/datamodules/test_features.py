"""Training on stored features: as on the documents they were made of, with little padding, resumable to the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hyperbagel.bagel.segments import DocumentBatch, TextSegment
from hyperbagel.datamodules.features import FeatureDataModule
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.store import write_features
from hyperbagel.modules.draft_head import DraftHeadMethod, DraftTraining
from tests.runs import nano_folder, trainer


def stage(folder: str) -> DraftTraining:
    method = DraftHeadMethod(draft=DraftConfig(layers=1, zero_init=False), steps=2)
    return DraftTraining(model=folder, method=method)


def documents(lengths: list[int]) -> DocumentBatch:
    """Questions of three tokens with answers of so many."""
    generator = torch.Generator().manual_seed(0)
    texts = [[TextSegment(torch.randint(5, 600, (n,), generator=generator), n != 3) for n in (3, m)] for m in lengths]
    return DocumentBatch(tuple(texts), tuple(f"{i}" for i in range(len(texts))), ({},) * len(texts))


def test_stored_features_train_as_their_documents_do(tmp_path: Path) -> None:
    folder = nano_folder(tmp_path / "nano")
    batch = documents([4, 4, 4, 4])
    online, offline = stage(folder), stage(folder)
    entries = offline.feature_needs()[1]
    write_features(online.model, [batch], entries, tmp_path / "features", dtype=torch.float32)
    trainer(tmp_path / "a", max_steps=1).fit(online, DataLoader([batch], batch_size=None))
    data = FeatureDataModule(str(tmp_path / "features"), val=str(tmp_path / "features"), batch_size=4)
    runner = trainer(tmp_path / "b", max_steps=1, limit_val_batches=1.0)
    runner.fit(offline, data)
    torch.testing.assert_close(online.draft.state_dict(), offline.draft.state_dict(), atol=2e-5, rtol=1e-3)
    assert "val/draft/acceptance_length" in runner.callback_metrics


LENGTHS = [4, 20, 5, 21, 6, 22, 7, 23, 8, 24]


@pytest.fixture
def stored(tmp_path: Path) -> tuple[str, str]:
    """Folders of a model and of features of ten documents, short and long ones in turn."""
    folder, features = nano_folder(tmp_path / "nano"), tmp_path / "features"
    there = stage(folder)
    write_features(there.model, [documents(LENGTHS)], there.feature_needs()[1], features, tokens_per_shard=64)
    return folder, str(features)


def test_batches_are_of_documents_of_like_length(stored: tuple[str, str]) -> None:
    data = FeatureDataModule(stored[1], val=stored[1], batch_size=5)
    batches = list(data.train_dataloader())
    assert {frozenset(batch.keys) for batch in batches} == {frozenset("02468"), frozenset("13579")}
    assert [batch.keys for batch in data.val_dataloader()] == [tuple("02468"), tuple("13579")]
    mixed = FeatureDataModule(stored[1], batch_size=5, window=1)
    assert {frozenset(batch.keys) for batch in mixed.train_dataloader()} != {frozenset("02468"), frozenset("13579")}


def trained(stored: tuple[str, str], updates: int, checkpoint: Path, resume: bool = False, seed: int = 0) -> Tensor:
    """fc2 of a head after so many updates of two documents, five batches an epoch."""
    head, data = stage(stored[0]), FeatureDataModule(stored[1], batch_size=2, seed=seed)
    runner = trainer(checkpoint.parent, max_steps=updates)
    runner.fit(head, data, ckpt_path=checkpoint if resume else None)
    runner.save_checkpoint(checkpoint)
    assert head.draft.fusion is not None
    return head.draft.fusion.fc2.weight.detach().clone()


@pytest.mark.parametrize("stop", [2, 5, 8])
def test_a_resumed_run_equals_an_uninterrupted_one(stored: tuple[str, str], tmp_path: Path, stop: int) -> None:
    whole = trained(stored, 9, tmp_path / "whole.ckpt")
    begun = trained(stored, stop, tmp_path / "last.ckpt")
    assert not torch.equal(begun, whole)
    assert torch.equal(trained(stored, 9, tmp_path / "last.ckpt", resume=True), whole)


def test_other_data_is_not_gone_on_with(stored: tuple[str, str], tmp_path: Path) -> None:
    trained(stored, 2, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="the data is not that of the checkpoint"):
        trained(stored, 4, tmp_path / "last.ckpt", resume=True, seed=1)
    with pytest.raises(ValueError, match="need batch_size and window >= 1"):
        FeatureDataModule(stored[1], batch_size=0)
