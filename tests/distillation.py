"""Nano documents and runs for the tests of distillation stages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch, ImageSegment, Segment, TextSegment, ViTSegment
from hyperbagel.losses.base import LossTerm, Step, Update
from hyperbagel.training.episode import Episode, read, target_sizes
from hyperbagel.training.networks import Training
from hyperbagel.training.optimization import Optimization

SIDE = 16


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


def fit(stage: Optimization, data: list[DocumentBatch], folder: Path, **options: Any) -> L.Trainer:
    """Train on given batches in order."""
    ckpt_path = options.pop("ckpt_path", None)
    run = trainer(folder, **options)
    loader: Any = DataLoader(data, batch_size=None, shuffle=False)  # type: ignore[arg-type]
    run.fit(stage, loader, ckpt_path=ckpt_path, weights_only=True)
    return run


class Recorder(LossTerm):
    """Adds nothing, and keeps what the terms of an update see."""

    def __init__(self, update: Update) -> None:
        super().__init__(f"recorded {update}", update=update)
        self.steps: list[Step] = []

    def forward(self, step: Step) -> Tensor:
        self.steps.append(step)
        return step.x_t.new_zeros(())


def record(stage: Optimization, update: Update = "student") -> list[Step]:
    """The steps that the loss terms of an update will have seen."""
    recorder = Recorder(update)
    stage.add_loss(recorder)
    return recorder.steps


def steps_of(stage: Optimization, data: list[DocumentBatch], folder: Path) -> list[Step]:
    """What the student's loss terms saw while it trained."""
    steps = record(stage)
    fit(stage, data, folder)
    return steps


class Logged(L.Callback):
    """Keeps a metric of each batch that has it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if (value := trainer.callback_metrics.get(self.name)) is not None:
            self.values.append(float(value))


def episode_of(
    model: Bagel,
    batch: DocumentBatch,
    *,
    variants: bool = False,
    scales: tuple[Tensor, Tensor] | None = None,
    noise: Tensor | None = None,
) -> Episode:
    """A batch in flight. scales: (B,) guidance inputs for text and source picture; noise: (B, n, C)."""
    grid = model.latent_grid(target_sizes(batch))
    with torch.no_grad():
        contexts = read(model, batch.documents, variants=variants)
    text, image = (torch.ones(len(batch)),) * 2 if scales is None else scales
    generator = torch.Generator().manual_seed(0)
    if noise is None:
        noise = torch.randn(*grid.position_ids.shape, model.config.latent_token_dim, generator=generator)
    return Episode(
        model=model,
        batch=batch,
        contexts=contexts,
        variants=variants,
        grid=grid,
        noise=noise,
        conditions={TEXT_SCALE: text, IMAGE_SCALE: image * contexts.has_image},
        generator=generator,
        student=model.generation,
        student_step=0,
    )


def updates(run: L.Trainer) -> list[int]:
    """Steps of each network's optimizer, all of them AdamW."""
    return [int(next(iter(optimizer.state.values()))["step"]) for optimizer in run.optimizers]


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: torch.nn.Module) -> bool:
    after = module.state_dict()
    assert before.keys() == after.keys()
    return any(not torch.equal(value, after[name]) for name, value in before.items())
