"""Settings of optimizers when a run is resumed: those that are configured now count, and differences are told."""

import copy
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, StepLR
from torch.utils.data import DataLoader

from hyperbagel.callbacks.safeguard import Safeguard
from hyperbagel.training.optimizers import MuonWithAdamW
from hyperbagel.training.resuming import keep_base_rates, keep_settings
from hyperbagel.training.schedules import WarmupStableDecay

Make = Callable[..., Optimizer]


def adamw(**settings: Any) -> Optimizer:
    return AdamW([nn.Parameter(torch.ones(2))], **{"lr": 1e-3, "weight_decay": 0.01, **settings})


def sgd(**settings: Any) -> Optimizer:
    return SGD([nn.Parameter(torch.ones(2))], **{"lr": 1e-3, "momentum": 0.9, **settings})


def muon(**settings: Any) -> Optimizer:
    named = [("a", nn.Parameter(torch.ones(2, 2))), ("b", nn.Parameter(torch.ones(2)))]
    return MuonWithAdamW(named, **settings)


def step(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def resumed(before: Optimizer, now: Optimizer) -> list[str]:
    """Load the state of one into the other; what is told."""
    step(before)
    told: list[str] = []
    keep_settings(now, told.append)
    now.load_state_dict(copy.deepcopy(before.state_dict()))
    step(now)
    return told


@pytest.mark.parametrize(
    ("make", "setting", "value", "old"),
    [
        (adamw, "weight_decay", 0.5, "0.01"),
        (adamw, "lr", 5e-3, "0.001"),
        (adamw, "betas", (0.5, 0.6), r"\(0\.9, 0\.999\)"),
        (adamw, "eps", 1e-4, "1e-08"),
        (adamw, "maximize", True, "False"),
        (sgd, "momentum", 0.5, "0.9"),
        (sgd, "nesterov", True, "False"),
        (muon, "weight_decay", 0.3, r"0\.\d+"),
        (muon, "momentum", 0.5, r"0\.\d+"),
    ],
)
def test_what_is_configured_counts_and_is_told(make: Make, setting: str, value: Any, old: str) -> None:
    now = make(**{setting: value})
    (told, *others) = resumed(make(), now)
    assert now.param_groups[0][setting] == value and not others
    assert re.search(rf"{setting} \S.* instead of {old}", told)


@pytest.mark.parametrize("make", [adamw, sgd, muon])
def test_equal_settings_are_not_told(make: Make) -> None:
    assert resumed(make(), make()) == []


def test_the_way_of_computing_is_that_of_the_device_and_not_told() -> None:
    now = adamw(foreach=False)
    assert resumed(adamw(foreach=True), now) == [] and now.param_groups[0]["foreach"] is False


def test_the_state_is_that_of_the_checkpoint() -> None:
    before, now = adamw(), adamw(weight_decay=0.5)
    for _ in range(3):
        step(before)
    resumed(before, now)
    assert [float(state["step"]) for state in now.state.values()] == [5.0]


def scheduled(make: Callable[[Optimizer], Any], lr: float, steps: int) -> tuple[Optimizer, Any]:
    optimizer = sgd(lr=lr)
    scheduler = make(optimizer)
    for _ in range(steps):
        step(optimizer)
        scheduler.step()
    return optimizer, scheduler


@pytest.mark.parametrize("lr", [1e-3, 4e-3])
@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: WarmupStableDecay(optimizer, warmup=2, total=10, decay=5),
        lambda optimizer: StepLR(optimizer, 2),
        lambda optimizer: CosineAnnealingLR(optimizer, 10),
        lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    ],
    ids=["own", "steps", "cosine", "lambda"],
)
def test_scheduled_rates_go_on_from_the_configured_one(make: Callable[[Optimizer], Any], lr: float) -> None:
    before, old = scheduled(make, 1e-3, 4)
    now, new = scheduled(make, lr, 0)
    told = []
    keep_settings(now, told.append)
    now.load_state_dict(copy.deepcopy(before.state_dict()))
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    keep_base_rates(new)
    wanted, schedule = scheduled(make, lr, 4)
    for _ in range(4):
        assert now.param_groups[0]["lr"] == pytest.approx(wanted.param_groups[0]["lr"])
        for optimizer, scheduler in ((now, new), (wanted, schedule)):
            step(optimizer)
            scheduler.step()
    assert bool(told) == (lr != 1e-3)


def test_schedules_that_come_and_go() -> None:
    before, _ = scheduled(lambda optimizer: StepLR(optimizer, 1), 1e-3, 3)
    now = sgd(lr=1e-3)
    assert resumed(before, now) == [] and now.param_groups[0]["lr"] == 1e-3
    now, _ = scheduled(lambda optimizer: StepLR(optimizer, 1), 2e-3, 0)
    assert "lr 0.002 instead of 0.001" in resumed(sgd(), now)[0] and now.param_groups[0]["lr"] == 2e-3


def test_another_kind_of_state_is_refused() -> None:
    with pytest.raises(ValueError, match="amsgrad of the optimizer was False in the checkpoint: resume with that"):
        resumed(adamw(), adamw(amsgrad=True))


def test_groups_that_do_not_fit_are_refused_as_ever() -> None:
    with pytest.raises(ValueError, match="parameter group"):
        resumed(muon(), adamw())


class Tiny(L.LightningModule):
    def __init__(self, lr: float, weight_decay: float) -> None:
        super().__init__()
        self.layer, self.settings = nn.Linear(2, 1), {"lr": lr, "weight_decay": weight_decay}

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss: Tensor = self.layer(batch).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = AdamW(self.parameters(), **self.settings)
        return [optimizer], [StepLR(optimizer, 100)]


def fit(module: Tiny, folder: Path, steps: int, ckpt_path: str | None = None) -> Optimizer:
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[Safeguard(), ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)],
    )
    trainer.fit(module, DataLoader(torch.ones(4, 2)), ckpt_path=ckpt_path)
    return trainer.optimizers[0]


def test_a_run_is_resumed_with_the_settings_of_its_configuration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(Tiny(1e-4, 0.01), tmp_path, 2)
    with caplog.at_level(logging.WARNING):
        optimizer = fit(Tiny(5e-3, 0.5), tmp_path, 4, str(tmp_path / "last.ckpt"))
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(5e-3, 0.5)]
    assert "weight_decay 0.5 instead of 0.01, lr 0.005 instead of 0.0001" in caplog.text
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"][0]
    assert (saved["lr"], saved["weight_decay"]) == (5e-3, 0.5)
