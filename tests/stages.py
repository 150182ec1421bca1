"""The catalogue of stages: what tests need to know of each, told once. A new stage is a new row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from hyperbagel.critics.latent import CriticSettings
from hyperbagel.critics.pixel import BagelViTFeatures
from hyperbagel.modules.adversarial_reward.adp import ADP, ADPMethod
from hyperbagel.modules.adversarial_reward.refl import ReFL
from hyperbagel.modules.autoencoder import AutoencoderTraining
from hyperbagel.modules.consistency.cfg_distillation import CFGDistillation
from hyperbagel.modules.consistency.tscd import TSCD, TSCDMethod
from hyperbagel.modules.dmdo import DMDO, DMDOMethod
from hyperbagel.modules.draft_head import DraftTraining
from hyperbagel.modules.pretraining import Pretraining
from hyperbagel.modules.reward_tuning import RewardTuning, RewardTuningMethod
from hyperbagel.modules.teacher_tuning import TeacherTuning
from hyperbagel.rewards.bagel import BagelReward
from hyperbagel.training.distillation import DistillationStage
from hyperbagel.training.networks import Training
from hyperbagel.training.stage import Stage

HEADS = CriticSettings(layers=2, channels=8)

LearnsFrom = Literal["answers", "pictures", "both"]
Make = Callable[[str, str | None, Training], Stage]

_FEATURES = {"features": {"class_path": "hyperbagel.critics.pixel.BagelViTFeatures"}}
_REWARD = {"reward": {"class_path": "hyperbagel.rewards.bagel.BagelReward"}}


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """A stage."""

    of: type[Stage]
    """Its class."""
    make: Make
    """One of nano size with every network it can have, of a model's folder, the branch that it starts as (None: the
    model's own), and how each network is trained."""
    networks: tuple[str, ...] = ("student",)
    """Names of what trains."""
    saved: tuple[str, ...] = ()
    """Further modules in its checkpoints: averages that it keeps."""
    timed: tuple[str, ...] = ()
    """Parts that the time of an update is logged by, which follow each other."""
    inner: tuple[str, ...] = ()
    """Those that lie within others."""
    configs: Mapping[str, LearnsFrom]
    """Its nano configurations, and what they learn from."""
    branch: str | None = None
    """Name of the branch file that its configurations leave; None for stages that leave something else."""
    leaves: str | None = "branch.safetensors"
    """File that it leaves in a run's folder."""
    averaged: str | None = "student"
    """What the EMA callback averages; None where the stage has an average of its own, or takes none."""
    alone: Mapping[str, Any] = field(default_factory=dict)
    """Arguments by which a configuration does without the stages before."""
    outside: Mapping[str, Any] = field(default_factory=dict)
    """Arguments by which a configuration of BAGEL-7B-MoT does without models from elsewhere."""
    ablation: str | None = None
    """Configuration of the scenes model for its ablation; of all but stage 1 it is the paper's own setting."""
    ablated_losses: tuple[str, ...] = ()
    """Losses of that."""


def _tscd(folder: str, branch: str | None, train: Training) -> Stage:
    method = TSCDMethod(r1_weight=0.1, mse_weight=0.1, heads=HEADS)
    return TSCD(model=folder, init_from=branch, method=method, student=train, critic=train)


def _adp(folder: str, branch: str | None, train: Training) -> Stage:
    return ADP(
        model=folder,
        init_from=branch,
        features=BagelViTFeatures(),
        method=ADPMethod(heads=HEADS),
        student=train,
        critic=train,
        pixel_critic=train,
    )


def _dmdo(folder: str, branch: str | None, train: Training) -> Stage:
    return DMDO(model=folder, init_from=branch, method=DMDOMethod(fake_updates=2), student=train, fake=train)


def _reward_tuning(folder: str, branch: str | None, train: Training) -> Stage:
    method = RewardTuningMethod(group=2)
    return RewardTuning(model=folder, init_from=branch, reward=BagelReward(), method=method, student=train)


STAGES: dict[str, StageRow] = {
    "autoencoder": StageRow(
        of=AutoencoderTraining,
        make=lambda folder, branch, train: AutoencoderTraining(model=folder, student=train),
        configs={"autoencoder": "pictures"},
        leaves=None,
        averaged="model",
    ),
    "pretraining": StageRow(
        of=Pretraining,
        make=lambda folder, branch, train: Pretraining(model=folder, student=train),
        configs={"understanding": "answers", "generation": "pictures", "pretrain": "both"},
        leaves=None,
        averaged="model",
    ),
    "teacher_tuning": StageRow(
        of=TeacherTuning,
        make=lambda folder, branch, train: TeacherTuning(
            model=folder, reward=BagelReward(), method=RewardTuningMethod(group=2), student=train
        ),
        saved=("ema",),
        timed=("trajectory", "reward", "student"),
        configs={"teacher_tuning": "pictures"},
        averaged=None,
    ),
    "draft_head": StageRow(
        of=DraftTraining,
        make=lambda folder, branch, train: DraftTraining(model=folder, student=train),
        configs={"draft_head": "answers"},
        leaves="draft.safetensors",
        averaged=None,
    ),
    "cfg_distillation": StageRow(
        of=CFGDistillation,
        make=lambda folder, branch, train: CFGDistillation(model=folder, init_from=branch, student=train),
        timed=("encode", "teacher", "student"),
        configs={"cfg_distillation": "pictures"},
        branch="cfg",
        ablation="cfg_shift1",
        ablated_losses=("cfg_distillation",),
    ),
    "tscd": StageRow(
        of=TSCD,
        make=_tscd,
        networks=("student", "critic"),
        saved=("ema",),
        timed=("encode", "target", "critic", "student"),
        configs={"tscd": "pictures"},
        branch="tscd",
        averaged=None,
        alone={"init_from": None},
        ablation="tscd_adversarial",
        ablated_losses=("adversarial_latent", "critic_latent"),
    ),
    "dmdo": StageRow(
        of=DMDO,
        make=_dmdo,
        networks=("student", "fake"),
        timed=("trajectory", "critic", "student"),
        inner=("teacher",),
        configs={"dmdo": "pictures"},
        branch="nfe6",
        alone={"init_from": None, "method": {"fake_from": None}},
        ablation="dmdo_ode",
        ablated_losses=("dmd", "fake"),
    ),
    "reward_tuning": StageRow(
        of=RewardTuning,
        make=_reward_tuning,
        saved=("ema",),
        timed=("trajectory", "reward", "student"),
        configs={"reward_tuning": "pictures"},
        branch="tuning",
        averaged=None,
        alone={"init_from": None},
        outside=_REWARD,
    ),
    "adp": StageRow(
        of=ADP,
        make=_adp,
        networks=("student", "critic", "pixel_critic"),
        timed=("trajectory", "critic", "student"),
        configs={"adp": "pictures"},
        branch="adp",
        alone={"init_from": None},
        outside=_FEATURES,
        ablation="adp_critics",
        ablated_losses=("adversarial_latent", "critic_latent"),
    ),
    "refl": StageRow(
        of=ReFL,
        make=lambda folder, branch, train: ReFL(model=folder, init_from=branch, reward=BagelReward(), student=train),
        timed=("student",),
        configs={"refl": "pictures"},
        branch="nfe1",
        alone={"init_from": None},
        outside=_REWARD,
    ),
}
"""Name of each stage -> what is true of it, in the order in which they may follow each other."""

DISTILLATION = tuple(name for name, row in STAGES.items() if row.branch is not None)
"""Stages that leave a branch."""


def make_stage(name: str, folder: str, branch: str | None, train: Training) -> DistillationStage:
    """A stage of distillation, with every network it can have, always of the same fresh weights."""
    torch.manual_seed(0)  # of the critics' heads
    stage = STAGES[name].make(folder, branch, train)
    assert isinstance(stage, DistillationStage)
    return stage
