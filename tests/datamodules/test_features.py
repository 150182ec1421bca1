"""Training on stored features: the same first update as on the documents they were made of."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import DataLoader

from hyperbagel.bagel.segments import DocumentBatch, TextSegment
from hyperbagel.datamodules.features import FeatureDataModule
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.store import write_features
from hyperbagel.modules.draft_head import DraftHeadMethod, DraftTraining
from tests.runs import nano_folder, trainer


def test_stored_features_train_as_their_documents_do(tmp_path: Path) -> None:
    folder = nano_folder(tmp_path / "nano")
    generator = torch.Generator().manual_seed(0)
    texts = [TextSegment(torch.randint(5, 600, (4,), generator=generator), loss=i % 2 == 1) for i in range(8)]
    documents = tuple([texts[i], texts[i + 1]] for i in range(0, 8, 2))
    batch = DocumentBatch(documents, tuple("abcd"), ({},) * 4)

    def stage() -> DraftTraining:
        method = DraftHeadMethod(draft=DraftConfig(layers=1, zero_init=False), steps=2)
        return DraftTraining(model=folder, method=method)

    online, offline = stage(), stage()
    entries = offline.feature_needs()[1]
    write_features(online.model, [batch], entries, tmp_path / "features", dtype=torch.float32)
    trainer(tmp_path / "a", max_steps=1).fit(online, DataLoader([batch], batch_size=None))
    data = FeatureDataModule(str(tmp_path / "features"), val=str(tmp_path / "features"), batch_size=4)
    runner = trainer(tmp_path / "b", max_steps=1, limit_val_batches=1.0)
    runner.fit(offline, data)
    torch.testing.assert_close(online.draft.state_dict(), offline.draft.state_dict(), atol=2e-5, rtol=1e-3)
    assert "val/draft/acceptance_length" in runner.callback_metrics
