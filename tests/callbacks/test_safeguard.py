"""Whole checkpoints, a stop at what is not finite, a save on SIGTERM."""

from __future__ import annotations

import json
import os
import shlex
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from hyperbagel.callbacks import Safeguard
from hyperbagel.callbacks.safeguard import FAILURE, WholeCheckpointIO
from hyperbagel.modules.pretraining import Pretraining, PretrainingMethod
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
            pl_module.method = replace(pl_module.method, mse_weight=1e12)


@pytest.mark.parametrize(
    ("what", "message"), [("loss", "the loss is nan"), ("gradient", "a gradient is not finite"), ("large", "loss is")]
)
def test_what_is_not_finite_stops_the_run_and_names_the_documents(
    what: str, message: str, folder: str, tmp_path: Path
) -> None:
    module = Pretraining(model=folder, method=PretrainingMethod(train="generation"))
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


class Told(Callback):
    def __init__(self, number: int) -> None:
        self.signal = number

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            os.kill(os.getpid(), self.signal)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_end_saves_and_goes_on_as_if_nothing_had_been(
    number: int, status: int, folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fit(name: str, *callbacks: Callback, ckpt_path: str | None = None) -> Pretraining:
        module = Pretraining(model=folder, method=PretrainingMethod(train="generation"))
        saver = ModelCheckpoint(tmp_path / name, save_last=True, every_n_train_steps=100)
        run = trainer(tmp_path, max_steps=4, callbacks=[saver, *callbacks], enable_checkpointing=True)
        run.fit(module, scenes({"generation": 1.0}), ckpt_path=ckpt_path)
        return module

    whole = fit("whole", Safeguard())
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        fit("stopped", Told(number), Safeguard())
    assert end.value.code == status
    assert signal.getsignal(number) is before
    saved = torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)
    assert int(saved["state_dict"]["student_step"]) == 2
    advised = caplog.text.split("--ckpt_path ")[1].split()[0]
    resumed = fit("stopped", Safeguard(), ckpt_path=advised)
    assert int(resumed.student_step) == 4
    for (name, value), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_legs_of_some_time_are_one_training(folder: str, tmp_path: Path) -> None:
    """Each has its time anew, and saves at its end: here after a single update."""

    def fit(**options: Any) -> Pretraining:
        module = Pretraining(model=folder, method=PretrainingMethod(train="generation"))
        saver = ModelCheckpoint(tmp_path / str(len(options)), save_last=True, every_n_train_steps=100)
        ckpt_path = options.pop("ckpt_path", None)
        run = trainer(tmp_path, max_steps=3, callbacks=[saver, Safeguard()], enable_checkpointing=True, **options)
        run.fit(module, scenes({"generation": 1.0}), ckpt_path=ckpt_path)
        return module

    whole, leg = fit(), timedelta(microseconds=1)
    last = str(tmp_path / "1" / "last.ckpt")
    assert int(fit(max_time=leg).student_step) == 1
    for update in (2, 3):
        (tmp_path / "2").mkdir(exist_ok=True)
        legs = fit(max_time=leg, ckpt_path=last)
        assert int(legs.student_step) == update
        last = str(tmp_path / "2" / ("last.ckpt" if update == 2 else "last-v1.ckpt"))
    for (name, value), other in zip(whole.state_dict().items(), legs.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("saver", [{}, {"dirpath": "own folder"}, {"dirpath": "own folder", "save_last": True}])
def test_the_advice_is_a_path_that_works(
    saver: dict[str, Any],
    folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where checkpoints go to a new folder in every run, and where another run left its own."""
    monkeypatch.chdir(tmp_path)
    Path("own folder").mkdir()
    Path("own folder/last.ckpt").write_text("of another run")
    callbacks = [ModelCheckpoint(**saver), Told(signal.SIGTERM), Safeguard()]
    logger = CSVLogger(tmp_path / "logs")
    run = trainer(tmp_path, max_steps=4, callbacks=callbacks, enable_checkpointing=True, logger=logger)
    with pytest.raises(SystemExit):
        run.fit(Pretraining(model=folder, method=PretrainingMethod(train="generation")), scenes({"generation": 1.0}))
    (advised,) = shlex.split(caplog.text.split("--ckpt_path ")[1].splitlines()[0])
    assert int(torch.load(advised, weights_only=True)["state_dict"]["student_step"]) == 2
    assert Path("own folder/last.ckpt").read_text() == "of another run"


def test_a_run_without_checkpoints_says_that_nothing_is_kept(
    folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(tmp_path, max_steps=4, callbacks=[Told(signal.SIGTERM), Safeguard()])
    with pytest.raises(SystemExit) as end:
        run.fit(Pretraining(model=folder, method=PretrainingMethod(train="generation")), scenes({"generation": 1.0}))
    assert end.value.code == 143 and "nothing is kept" in caplog.text


class ToldInTest(Callback):
    def on_test_batch_start(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_what_does_not_train_ends_at_once(folder: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[ToldInTest(), Safeguard()])
    with pytest.raises(SystemExit) as end:
        run.test(Pretraining(model=folder, method=PretrainingMethod(train="generation")), scenes({"generation": 1.0}))
    assert end.value.code == 143


class Fails(Callback):
    def on_train_batch_end(self, *_: Any) -> None:
        raise ValueError("it failed")


def test_a_failure_is_recorded_with_its_traceback(folder: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=4, callbacks=[Fails(), Safeguard()])
    with pytest.raises(ValueError, match="it failed"):
        run.fit(Pretraining(model=folder, method=PretrainingMethod(train="generation")), scenes({"generation": 1.0}))
    record = json.loads((tmp_path / FAILURE).read_text())
    assert (record["error"], record["batch"]) == ("it failed", 0)
    assert 'raise ValueError("it failed")' in "".join(record["traceback"])


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
    with pytest.raises(Exception, match="more than tensors and plain values"):
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
