"""The data module in a Lightning trainer: exact resume, ranks, figures in the loggers."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.datamodules.interleaved import Batching, InterleavedDataModule
from hyperbagel.datamodules.sources import Source
from tests.datamodules.samples import epoch, sample_members, tensors, write_tar

Make = Callable[..., InterleavedDataModule]


class Recorder(L.LightningModule):
    """Notes the keys of the batches it is given; fails in one step if asked to."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.fail_at, self.keys, self.steps = fail_at, [], 0

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> Tensor:
        self.steps += 1
        if self.steps == self.fail_at:
            raise RuntimeError("asked to fail")
        self.keys.append(batch.keys)
        return self.weight * tensors(batch)[0].float().mean()

    def validation_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        assert isinstance(batch, DocumentBatch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(tmp_path, **options: object) -> L.Trainer:
    return L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, **({"logger": False} | options),
    )  # fmt: skip


@pytest.mark.parametrize("stop", [2, 26, 27])  # within the first epoch, at its end, in the second
def test_lightning_resumes_exactly(shards, make_module: Make, tmp_path, stop: int):
    straight = Recorder()
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(straight, make_module(shards))
    assert len(straight.keys) == 52
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=stop, save_top_k=-1)
    first = Recorder()
    trainer(tmp_path, max_steps=stop + 1, callbacks=[save]).fit(first, make_module(shards, workers=2))
    assert first.keys == straight.keys[: stop + 1]
    second = Recorder()
    resumed = trainer(tmp_path, max_steps=52, enable_checkpointing=False)
    resumed.fit(second, make_module(shards), ckpt_path=tmp_path / f"step={stop}.ckpt", weights_only=True)
    assert second.keys == straight.keys[stop:]


def test_a_batch_whose_step_failed_is_not_lost(shards, make_module: Make, tmp_path):
    straight = Recorder()
    trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(straight, make_module(shards))
    first, second = Recorder(fail_at=5), Recorder()
    save = OnExceptionCheckpoint(tmp_path, filename="failed")
    with pytest.raises(RuntimeError, match="asked to fail"):
        trainer(tmp_path, max_epochs=1, callbacks=[save]).fit(first, make_module(shards))
    resumed = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    resumed.fit(second, make_module(shards), ckpt_path=tmp_path / "failed.ckpt", weights_only=True)
    assert first.keys + second.keys == straight.keys


def test_figures_reach_the_loggers(shards, make_module: Make, tmp_path):
    module = make_module({"good": shards["generation"], "bad": [tmp_path / "bad.tar"]}, max_skipped=1)
    write_tar(tmp_path / "bad.tar", [("bad.json", b"{"), *sample_members(99)])
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    options = {"logger": logger, "log_every_n_steps": 5, "enable_checkpointing": False, "max_epochs": 1}
    trainer(tmp_path, **options).fit(Recorder(), module)
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").open()))
    assert len(rows) >= 3
    for row in rows:
        assert float(row["data/samples_per_second"]) > 0
        assert 0 <= float(row["data/wait_share"]) <= 1 and 0 <= float(row["data/padding_share"]) < 1
        assert float(row["data/skipped/bad_json"]) == 1


def test_overfitting_repeats_the_same_batches(shards, make_module: Make, tmp_path):
    model = Recorder()
    trainer(tmp_path, max_epochs=3, overfit_batches=2, enable_checkpointing=False).fit(model, make_module(shards))
    assert len(model.keys) == 6 and model.keys[:2] == model.keys[2:4] == model.keys[4:]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_passes_batches_on(shards, make_module: Make, tmp_path, precision: str):
    module = make_module(shards, batching=Batching(batch_size=4))
    module.sources["val"] = [Source("val", [str(path) for path in shards["editing"]])]
    model = Recorder()
    trainer(tmp_path, max_steps=2, precision=precision, val_check_interval=2, enable_checkpointing=False).fit(
        model, module
    )
    assert len(model.keys) == 2


class WritingRecorder(Recorder):
    """Leaves its keys in a file for each rank."""

    def __init__(self, folder) -> None:
        super().__init__()
        self.folder = folder

    def on_train_end(self) -> None:
        (self.folder / f"rank{self.global_rank}.json").write_text(json.dumps(self.keys))


@pytest.mark.slow
def test_ranks_of_a_trainer_share_the_data(shards, make_module: Make, tmp_path):
    options = {"strategy": "ddp_fork", "devices": 2, "max_epochs": 1, "enable_checkpointing": False}
    trainer(tmp_path, **options).fit(WritingRecorder(tmp_path), make_module(shards, workers=1))
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == 14
    for rank, keys in enumerate(ranks):
        simulated = epoch(make_module(shards, rank=rank, world_size=2))
        assert [tuple(batch) for batch in keys] == [batch.keys for batch in simulated]
