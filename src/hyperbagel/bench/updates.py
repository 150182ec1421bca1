"""One training batch of every stage of distillation, with adapters, on one device."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from hyperbagel.bagel.checkpoint import save_config
from hyperbagel.bagel.joinable import apart
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, DocumentBatch, ImageSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.bench.device import Meter
from hyperbagel.bench.subject import PROMPT, Figures, Measurement, Subject, text
from hyperbagel.critics.latent import CriticSettings
from hyperbagel.critics.pixel import BagelViTFeatures
from hyperbagel.modules.adversarial_reward.adp import ADP, ADPMethod
from hyperbagel.modules.adversarial_reward.refl import ReFL
from hyperbagel.modules.consistency.cfg_distillation import CFGDistillation
from hyperbagel.modules.consistency.tscd import TSCD, TSCDMethod
from hyperbagel.modules.dmdo import DMDO
from hyperbagel.modules.reward_tuning import RewardTuning, RewardTuningMethod
from hyperbagel.rewards.bagel import BagelReward
from hyperbagel.scenes.vocabulary import tokenizer_folder
from hyperbagel.training.distillation import DistillationSettings, DistillationStage
from hyperbagel.training.memory import Workload
from hyperbagel.training.networks import LoRA, Training
from hyperbagel.training.planning import Cluster, plan
from hyperbagel.training.stage import Compute

HEADS: Final = CriticSettings(layers=4, channels=256)


@dataclass(frozen=True)
class Recipe:
    """What stages are made of. model: folder; train: how networks with adapters train."""

    model: str
    settings: DistillationSettings
    train: Training

    @property
    def common(self) -> dict[str, Any]:
        """Arguments of all stages."""
        return {"model": self.model, "settings": self.settings, "student": self.train}


STAGES: Final[Mapping[str, Callable[[Recipe], DistillationStage]]] = {
    "CFG distillation": lambda r: CFGDistillation(**r.common),
    "TSCD": lambda r: TSCD(**r.common, critic=r.train, method=TSCDMethod(heads=HEADS)),
    "DMDO": lambda r: DMDO(**r.common, fake=r.train),
    "reward tuning": lambda r: RewardTuning(**r.common, reward=BagelReward(), method=RewardTuningMethod(draws=1)),
    "ADP": lambda r: ADP(
        **r.common,
        features=BagelViTFeatures(),
        critic=r.train,
        pixel_critic=replace(r.train, lora=None),
        method=ADPMethod(heads=HEADS),
    ),
    "ReFL": lambda r: ReFL(**r.common, reward=BagelReward()),
}
"""Stages as `configs/bagel7b/lora` has them, with parts that need no files."""


@dataclass(frozen=True)
class _Given(Compute):
    """A model that is there already, in place of one to be loaded."""

    model: Bagel | None = None

    def load(self, folder: str) -> Bagel:
        """The model."""
        assert self.model is not None
        self.model.checkpointing = self.checkpointing
        return self.model.train()


class _Staying(SingleDeviceStrategy):
    """Leaves the weights on their device when a run ends, as the next one goes on with them."""

    def teardown(self) -> None:
        """Lightning's, without the way to the CPU."""
        self.precision_plugin.teardown()
        self.accelerator.teardown()  # type: ignore[union-attr]


class _Clock(Callback):
    """Notes when batches end."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.ends = meter, list[float]()

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Note the time."""
        self.ends.append(self.meter.now())


def updates(subject: Subject) -> Iterator[Measurement]:
    """One measurement a stage."""
    for name, make in STAGES.items():
        yield {"stage": name}, partial(_update, subject, make)


def _update(subject: Subject, make: Callable[[Recipe], DistillationStage]) -> Figures:
    model = subject.model
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if model.dtype == torch.bfloat16 else "float32"
    # What is exported when training ends is small: adapters alone.
    optimizer = partial(torch.optim.AdamW, lr=1e-6, fused=True)
    training = Training(optimizer=optimizer, lora=LoRA(merge=False), dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        save_config(model.config, folder)
        Tokenizer.from_pretrained(tokenizer_folder(), add_special_tokens=True).save_pretrained(folder)
        shapes = DistillationSettings(compute=Compute(dtype=dtype, checkpointing=True))
        recipe = Recipe(folder, shapes, training)
        with torch.device("meta"):
            planned = plan(make(recipe), Cluster(), _workload(subject))
        given = _Given(dtype=dtype, checkpointing=True, model=model)
        subject.meter.restart_memory()
        try:
            with apart(model, subject.branch):  # as they are where models are trained
                stage = make(replace(recipe, settings=DistillationSettings(compute=given)))
                seconds = _train(stage, subject, folder)
        finally:
            model.checkpointing = False
            model.eval().requires_grad_(False)
    return {"seconds": seconds, "peak_bytes": subject.meter.peak_bytes(), "planned_bytes": planned.total(1)}


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what Lightning tells of every run."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _workload(subject: Subject) -> Workload:
    return Workload(side=subject.size[0], text=PROMPT + 2, editing=False)


def _train(stage: DistillationStage, subject: Subject, folder: str) -> float:
    """Seconds of a batch, after one that warms up."""
    device, number = subject.model.device, 2 if subject.quick else 3
    picture, _ = subject.picture()
    document: Document = [*text(), ImageSegment(picture.pixels.cpu(), loss=True)]
    batch = DocumentBatch((document,), ("picture",), ({},), "bench")
    clock = _Clock(subject.meter)
    with _quietly():
        trainer = Trainer(
            accelerator="gpu" if subject.meter.on_gpu else "cpu",
            strategy=_Staying(device=device),
            devices=1,
            precision="bf16-mixed" if subject.model.dtype == torch.bfloat16 else "32-true",
            max_epochs=1,
            callbacks=[clock],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(stage, DataLoader([batch] * number, batch_size=None))  # type: ignore[arg-type]
    return (clock.ends[-1] - clock.ends[0]) / (number - 1)
