"""Whole checkpoints, a stop at what is not finite, a save on SIGTERM."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from hyperbagel.callbacks import Safeguard
from hyperbagel.callbacks.safeguard import FAILURE, WholeCheckpointIO
from hyperbagel.modules.pretrain import Pretraining
from tests.runs import nano_folder, scenes, trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nano_folder(tmp_path_factory.mktemp("nano"))


class Poison(Callback):
    """Makes the loss or a gradient of the second update unusable."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, Pretraining)
        if batch_idx == 1 and self.what == "loss":
            with torch.no_grad():
                pl_module.model.generation.norm.weight.fill_(float("nan"))
        if batch_idx == 1 and self.what == "gradient":
            pl_module.model.generation.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
        if batch_idx == 1 and self.what == "large":
            pl_module.loss = type(pl_module.loss)(mse_weight=1e12)


@pytest.mark.parametrize(
    ("what", "message"), [("loss", "the loss is nan"), ("gradient", "a gradient is not finite"), ("large", "loss is")]
)
def test_what_is_not_finite_stops_the_run_and_names_the_documents(
    what: str, message: str, folder: str, tmp_path: Path
) -> None:
    module = Pretraining(folder, train="generation")
    run = trainer(tmp_path, max_steps=4, callbacks=[Poison(what), Safeguard()])
    with pytest.raises(FloatingPointError, match=message):
        run.fit(module, scenes({"generation": 1.0}))
    assert int(module.student_step) == 1
    if what != "loss":
        assert all(bool(p.isfinite().all()) for p in module.parameters())
    record = json.loads((tmp_path / FAILURE).read_text())
    assert (record["student_step"], record["batch"], record["source"]) == (1, 1, "scenes")
    assert len(record["keys"]) == 2
    assert message in record["error"]


class Terminated(Callback):
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_terminated_run_saves_and_goes_on_as_if_nothing_had_been(folder: str, tmp_path: Path) -> None:
    def fit(name: str, *callbacks: Callback, ckpt_path: str | None = None) -> Pretraining:
        module = Pretraining(folder, train="generation")
        saver = ModelCheckpoint(tmp_path / name, save_last=True, every_n_train_steps=100)
        run = trainer(tmp_path, max_steps=4, callbacks=[saver, *callbacks], enable_checkpointing=True)
        run.fit(module, scenes({"generation": 1.0}), ckpt_path=ckpt_path)
        return module

    whole = fit("whole", Safeguard())
    with pytest.raises(SystemExit):
        fit("stopped", Terminated(), Safeguard())
    saved = torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)
    assert int(saved["state_dict"]["student_step"]) == 2
    resumed = fit("stopped", Safeguard(), ckpt_path="last")
    assert int(resumed.student_step) == 4
    for (name, value), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


class Unwritable:
    """Stands for a disk that is full halfway through a checkpoint."""

    def __reduce__(self) -> Any:
        raise OSError(28, "No space left on device")


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_good_one(tmp_path: Path) -> None:
    place, writer = tmp_path / "last.ckpt", WholeCheckpointIO()
    writer.save_checkpoint({"step": 1, "weights": torch.ones(3)}, place)
    with pytest.raises(OSError, match="No space left"):
        writer.save_checkpoint({"weights": torch.zeros(1000), "later": Unwritable()}, place)
    assert writer.load_checkpoint(place)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_checkpoints_are_written_beside_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never by way of another disk, from which moving is copying."""
    seen: list[tuple[Path, Path]] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append((self, Path(target)))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    WholeCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "new" / "last.ckpt")
    assert [(a.parent, b.name) for a, b in seen] == [(tmp_path / "new", "last.ckpt")]


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def test_checkpoints_are_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        WholeCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    assert not (tmp_path / "pwned").exists()


def test_another_way_of_writing_checkpoints_is_respected(tmp_path: Path) -> None:
    class Own(WholeCheckpointIO):
        pass

    class Nothing(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    for plugin, expected in ((Own(), Own), (None, WholeCheckpointIO)):
        run = trainer(tmp_path, plugins=[plugin] if plugin else None)
        Safeguard().setup(run, Nothing(), "fit")
        assert type(run.strategy.checkpoint_io) is expected
