"""The guard against rewards that rise while pictures get worse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hyperbagel.callbacks.evaluation import Evaluation, Findings, Run
from hyperbagel.callbacks.reward_guard import RewardGuard, Watch
from hyperbagel.losses.base import LossTerm, Step


class Term(LossTerm):
    def __init__(self) -> None:
        super().__init__("refl", 0.8)

    def forward(self, step: Step) -> Tensor:
        return step.velocity


class Module(L.LightningModule):
    """A stage with scripted rewards."""

    def __init__(self, rewards: Sequence[float]) -> None:
        super().__init__()
        self.rewards, self.layer, self.term = rewards, nn.Linear(1, 1), Term()
        self.loss_terms = [self.term]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("reward/refl", self.rewards[int(batch)])
        return self.layer(torch.ones(1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Scripted(Evaluation):
    """An evaluation after every batch, with scripted results."""

    def __init__(self, metric: str, values: Sequence[float]) -> None:
        super().__init__()
        self.metric, self.values = metric, values

    def evaluate(self, run: Run) -> Findings:
        raise AssertionError

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        pass

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.findings = Findings({"model": {self.metric: self.values[int(batch)]}, "naive": {self.metric: 0.0}})


def run(
    rewards: Sequence[float],
    evaluations: list[Callback],
    guard: RewardGuard,
    folder: Path,
    steps: range | None = None,
    **options: Any,
) -> Module:
    module = Module(rewards)
    ckpt_path = options.pop("ckpt_path", None)
    trainer = L.Trainer(
        default_root_dir=folder, max_epochs=options.pop("max_epochs", 1), accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*evaluations, guard, *options.pop("callbacks", [])],
        enable_checkpointing=options.pop("enable_checkpointing", False),
    )  # fmt: skip
    data: Any = torch.tensor(list(steps or range(len(rewards))))
    trainer.fit(module, DataLoader(data, batch_size=1), ckpt_path=ckpt_path, weights_only=True)
    return module


def test_weight_falls_and_training_stops(tmp_path: Path) -> None:
    """GenEval falls from 0.8 while the reward rises: half, a quarter, stop; what comes after is not trained."""
    guard = RewardGuard(alarms=2)
    module = run([1, 2, 3, 4, 5], [Scripted("geneval/overall", [0.8, 0.81, 0.7, 0.7, 0.9])], guard, tmp_path)
    assert guard.raised == 2 and module.term.weight == 0.2
    assert module.trainer.should_stop and module.trainer.global_step == 4


@pytest.mark.parametrize(
    ("metric", "values", "rewards", "alarms"),
    [
        ("geneval/overall", [0.8, 0.79, 0.785], [1, 2, 3], 0),  # within the tolerance
        ("geneval/overall", [0.8, 0.5, 0.5], [3, 2, 1], 0),  # the reward falls too: no hacking
        ("geneval/overall", [0.5, 0.7, 0.8], [1, 2, 3], 0),
        ("fidelity/teacher", [10.0, 9.0, 8.0], [1, 2, 3], 0),  # lower is better
        ("fidelity/teacher", [10.0, 9.0, 12.0], [1, 2, 3], 1),
        ("diversity", [0.5, 0.4, 0.6], [1, 2, 3], 1),
        ("unwatched", [0.8, 0.1, 0.1], [1, 2, 3], 0),
    ],
)
def test_alarms(metric: str, values: list[float], rewards: list[float], alarms: int, tmp_path: Path) -> None:
    guard = RewardGuard()
    module = run(rewards, [Scripted(metric, values)], guard, tmp_path)
    assert guard.raised == alarms
    assert module.term.weight == 0.8 * 0.5**alarms


def test_goes_on_after_resuming(tmp_path: Path) -> None:
    rewards, values = [1, 2, 3, 4], [0.8, 0.7, 0.9, 0.7]
    whole = RewardGuard()
    end = run(rewards, [Scripted("gedit/o", values)], whole, tmp_path)
    half = RewardGuard()
    saver = ModelCheckpoint(tmp_path, "half")
    run(rewards, [Scripted("gedit/o", values)], half, tmp_path, range(2), callbacks=[saver], enable_checkpointing=True)
    resumed = RewardGuard()
    options = {"ckpt_path": tmp_path / "half.ckpt", "max_epochs": 2}
    module = run(rewards, [Scripted("gedit/o", values)], resumed, tmp_path, range(2, 4), **options)
    assert whole.raised == resumed.raised == 2
    assert module.term.weight == end.term.weight == 0.2
    assert whole.state_dict() == resumed.state_dict()


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="factor"):
        RewardGuard(factor=1.0)
    with pytest.raises(ValueError, match=r"has no loss term 'other' \(its terms: refl\)"):
        run([1], [], RewardGuard(term="other"), tmp_path)
    assert Watch("x").best(1.0, None) == 1.0
