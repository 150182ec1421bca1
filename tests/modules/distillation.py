"""Nano documents and runs for the tests of distillation stages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hyperbagel.bagel.segments import DocumentBatch, ImageSegment, Segment, TextSegment, ViTSegment
from hyperbagel.critics.latent import CriticSettings
from hyperbagel.critics.pixel import BagelViTFeatures
from hyperbagel.losses.base import Step
from hyperbagel.modules.adversarial_reward import ADP, ReFL
from hyperbagel.modules.consistency import TSCD, CFGDistillation, TSCDSettings
from hyperbagel.modules.dmdo import DMDO, DMDOSettings
from hyperbagel.modules.reward_tuning import RewardTuning, TuningSettings
from hyperbagel.rewards.bagel import BagelReward
from hyperbagel.training.distillation import DistillationStage
from hyperbagel.training.networks import LoRA, Training

SIDE = 16
HEADS = CriticSettings(layers=2, channels=8)


def picture(generator: torch.Generator, size: tuple[int, int] = (SIDE, SIDE)) -> Tensor:
    return torch.rand(3, *size, generator=generator) * 2 - 1


def text(generator: torch.Generator, length: int = 3) -> TextSegment:
    return TextSegment(torch.randint(5, 500, (length,), generator=generator))


def documents(seed: int, editing: bool, sizes: list[tuple[int, int]]) -> DocumentBatch:
    """One document a size: a prompt and an image, or a source image, an instruction and an image."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for i, size in enumerate(sizes):
        row: list[Segment] = []
        if editing:
            source = picture(g, size)
            row += [ImageSegment(source), ViTSegment(source)]
        rows.append([*row, text(g, 3 + i), ImageSegment(picture(g, size), loss=True)])
    keys = tuple(f"{seed}-{i}" for i in range(len(sizes)))
    return DocumentBatch(tuple(rows), keys, tuple({} for _ in rows), "editing" if editing else "generation")


def batches(count: int, size: int = 2, mixed_sizes: bool = False) -> list[DocumentBatch]:
    """Generation and editing batches in turn."""
    sizes = [(SIDE, SIDE * 2 if mixed_sizes and i else SIDE) for i in range(size)]
    return [documents(i, bool(i % 2), sizes) for i in range(count)]


def sgd(lr: float = 0.05, **options: Any) -> Training:
    return Training(lambda parameters: torch.optim.SGD(parameters, lr=lr), **options)


def adam(lr: float = 1e-3, **options: Any) -> Training:
    return Training(lambda parameters: torch.optim.AdamW(parameters, lr=lr), **options)


class Batches(L.LightningDataModule):
    """Batches of one data source, by its name."""

    def __init__(self, data: list[DocumentBatch], source: str) -> None:
        super().__init__()
        self.data, self.sources = data, {"train": [SimpleNamespace(name=source)]}

    def train_dataloader(self) -> DataLoader[DocumentBatch]:
        return DataLoader(self.data, batch_size=None)  # type: ignore[arg-type]


def trainer(folder: Path, **options: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(default_root_dir=folder, **(settings | options))


def fit(stage: DistillationStage, data: list[DocumentBatch], folder: Path, **options: Any) -> L.Trainer:
    """Train on given batches in order."""
    ckpt_path = options.pop("ckpt_path", None)
    run = trainer(folder, **options)
    loader: Any = DataLoader(data, batch_size=None, shuffle=False)  # type: ignore[arg-type]
    run.fit(stage, loader, ckpt_path=ckpt_path, weights_only=True)
    return run


def steps_of(stage: DistillationStage, count: int, folder: Path) -> list[Step]:
    """What the student's loss terms saw."""
    seen: list[Step] = []
    original = stage.total

    def spy(step: Step, update: str) -> Tensor:
        if update == "student":
            seen.append(step)
        return original(step, update)  # type: ignore[arg-type]

    stage.total = spy  # type: ignore[method-assign, assignment]
    fit(stage, batches(count), folder)
    return seen


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: torch.nn.Module) -> bool:
    after = module.state_dict()
    assert before.keys() == after.keys()
    return any(not torch.equal(value, after[name]) for name, value in before.items())


def make_stage(name: str, folder: str, branch: str | None, lora: LoRA | None = None) -> DistillationStage:
    """Any stage, with every network it can have."""
    torch.manual_seed(0)  # of the critics' heads
    train = adam(lora=lora)
    if name == "cfg":
        return CFGDistillation(folder, train, branch)
    if name == "tscd":
        return TSCD(folder, branch, train, train, TSCDSettings(r1_weight=0.1, mse_weight=0.1), HEADS)
    if name == "dmdo":
        return DMDO(folder, branch, train, train, DMDOSettings(fake_updates=2))
    if name == "tuning":
        return RewardTuning(folder, BagelReward(), branch, TuningSettings(group=2), train)
    if name == "adp":
        return ADP(folder, branch, BagelViTFeatures(), train, train, train, heads=HEADS)
    return ReFL(folder, BagelReward(), branch, student=train)


STAGES = ("cfg", "tscd", "tuning", "dmdo", "adp", "refl")
NETWORKS = {
    "cfg": ("student",),
    "tscd": ("student", "critic"),
    "tuning": ("student",),
    "dmdo": ("student", "fake"),
    "adp": ("student", "critic", "pixel_critic"),
    "refl": ("student",),
}
