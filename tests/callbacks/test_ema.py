"""The moving average: its numbers, where it stands in for the weights, and that a run resumes with it."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from hyperbagel.callbacks import EMA
from hyperbagel.modules.pretraining import Pretraining, PretrainingMethod
from hyperbagel.training.networks import Training
from tests.runs import nano_folder, scenes, trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nano_folder(tmp_path_factory.mktemp("nano"))


def stage(folder: str, accumulate: int = 1) -> Pretraining:
    method = PretrainingMethod(train="generation")
    return Pretraining(model=folder, method=method, student=Training(accumulate=accumulate))


class Watch(Callback):
    """Records one weight after every update and in every validation."""

    def __init__(self) -> None:
        self.trained: list[Tensor] = []
        self.validated: list[Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        self.trained.append(pl_module.model.generation.norm.weight.detach().clone())

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self.validated.append(pl_module.model.generation.norm.weight.detach().clone())


def test_validation_sees_the_average_and_training_goes_on_from_the_weights(folder: str, tmp_path: Path):
    module, ema, watch = stage(folder), EMA(0.5), Watch()
    average = module.model.generation.norm.weight.detach().clone()
    data = scenes({"generation": 1.0})
    runner = trainer(
        tmp_path, max_steps=4, callbacks=[ema, watch], val_check_interval=2, limit_val_batches=1, num_sanity_val_steps=0
    )
    runner.fit(module, data)
    averages = []
    for number, weight in enumerate(watch.trained, start=1):
        decay = min(0.5, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * weight
        averages.append(average)
    torch.testing.assert_close(watch.validated, [averages[1], averages[3]])
    assert torch.equal(module.model.generation.norm.weight, watch.trained[-1])
    assert set(ema.state_dict()["average"]) == {
        f"generation.{name}" for name, _ in module.model.generation.named_parameters()
    }


def test_accumulated_batches_count_once(folder: str, tmp_path: Path):
    ema = EMA()
    trainer(tmp_path, max_steps=2, callbacks=[ema]).fit(stage(folder, accumulate=2), scenes({"generation": 1.0}))
    assert ema.state_dict()["updates"] == 2


def test_a_resumed_average_equals_an_uninterrupted_one(folder: str, tmp_path: Path):
    averages = []
    for steps in ([4], [2, 4]):
        checkpoint = None
        for step in steps:
            ema = EMA(0.9, "model.generation")
            runner = trainer(tmp_path, max_steps=step, callbacks=[ema])
            runner.fit(stage(folder), scenes({"generation": 1.0}), ckpt_path=checkpoint)
            checkpoint = tmp_path / f"{step}.ckpt"
            runner.save_checkpoint(checkpoint)
        torch.load(checkpoint, weights_only=True)  # nothing but tensors and plain types in it
        averages.append(ema.state_dict()["average"])
    for name, value in averages[0].items():
        assert torch.equal(value, averages[1][name]), name


def test_the_average_of_a_checkpoint_is_tested(folder: str, tmp_path: Path):
    ema = EMA(0.9)
    runner = trainer(tmp_path, max_steps=2, callbacks=[ema])
    runner.fit(stage(folder), scenes({"generation": 1.0}))
    runner.save_checkpoint(tmp_path / "two.ckpt")

    class Seen(Callback):
        def on_test_epoch_end(self, trainer, pl_module) -> None:
            self.weight = pl_module.model.generation.norm.weight.detach().clone()

    seen = Seen()
    trainer(tmp_path, callbacks=[EMA(0.9), seen]).test(
        stage(folder), scenes({"generation": 1.0}), ckpt_path=tmp_path / "two.ckpt", verbose=False
    )
    assert torch.equal(seen.weight, ema.state_dict()["average"]["generation.norm.weight"])


def test_an_exception_in_validation_leaves_the_weights_in_their_place(folder: str, tmp_path: Path):
    class Fail(Callback):
        def on_validation_epoch_end(self, trainer, pl_module) -> None:
            raise RuntimeError("disk full")

    module, watch = stage(folder), Watch()
    runner = trainer(
        tmp_path,
        max_steps=2,
        callbacks=[EMA(0.5), watch, Fail()],
        val_check_interval=2,
        limit_val_batches=1,
        num_sanity_val_steps=0,
    )
    with pytest.raises(RuntimeError, match="disk full"):
        runner.fit(module, scenes({"generation": 1.0}))
    assert torch.equal(module.model.generation.norm.weight, watch.trained[-1])


def test_two_averages_have_their_own_state():
    assert EMA(module="student").state_key != EMA(module="critic").state_key


def test_settings_that_average_nothing_are_refused(folder: str, tmp_path: Path):
    with pytest.raises(ValueError, match="between 0 and 1"):
        EMA(1.0)
    with pytest.raises(ValueError, match="no parameters that train"):
        trainer(tmp_path, max_steps=1, callbacks=[EMA(module="model.autoencoder")]).fit(
            stage(folder), scenes({"generation": 1.0})
        )
