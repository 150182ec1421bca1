"""What a training took, and on what, over all its legs."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from hyperbagel.callbacks.provenance import Provenance, device_name


class _Stage(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.weight - batch).square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder: Path, updates: int, provenance: Provenance, resumed: Path | None = None) -> dict[str, float]:
    trainer = L.Trainer(
        default_root_dir=folder,
        max_steps=updates,
        logger=False,
        enable_progress_bar=False,
        accelerator="cpu",
        callbacks=[provenance],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(_Stage(), DataLoader(torch.zeros(8, 1), num_workers=0), ckpt_path=resumed, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    told: dict[str, float] = json.loads((folder / "provenance.json").read_text())
    return told


def test_what_earlier_legs_took_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("hyperbagel.callbacks.provenance.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("hyperbagel.callbacks.provenance.time.process_time", lambda: now[0] / 2)

    class Clock(Provenance):
        def on_train_batch_end(self, *_: object) -> None:
            now[0] += 30

    first = run(tmp_path, 2, Clock())
    assert (first["seconds"], first["cpu_seconds"]) == (60, 30)
    again = Clock()
    second = run(tmp_path, 5, again, tmp_path / "last.ckpt")
    assert (second["seconds"], second["cpu_seconds"]) == (150, 75) and again.cost == (150, 75)
    assert second["device"] == device_name(torch.device("cpu"))
    fresh = run(tmp_path, 1, again)
    assert fresh["seconds"] == 30, "another run of the same object begins anew"


def test_a_processor_is_named_with_its_threads() -> None:
    name, _, threads = device_name(torch.device("cpu")).rpartition(", ")
    assert name and threads == f"{torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() != 1)
