"""Tuning of a sampler of several steps by a reward that needs no gradient, behind stage 2 or 3."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbagel.bagel.branch import GenerationBranch, GuidanceScales
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.losses.advantage import group_advantages, group_covariance
from hyperbagel.losses.terms import MeanSquaredError
from hyperbagel.modules.base import DistillationStage, StageSettings
from hyperbagel.modules.batches import PreparedBatch, Velocity, branch_velocity, trajectory
from hyperbagel.modules.networks import DEFAULT_TRAINING, Training, ema_copy, update_ema
from hyperbagel.modules.reward_term import reward_prompts
from hyperbagel.rewards.base import Reward, scored

_SETTINGS = StageSettings()


@dataclass(frozen=True)
class TuningSettings:
    """Settings of reward tuning."""

    group: int = 8
    """Pictures of each document, which are compared with each other."""
    shared_noise: float = 0.9
    """Share of the variance of their noise that the pictures of a group have in common. Neighbours differ in little but
    what the reward sees, so they teach little else."""
    strength: float = 1.0
    """Strength of the lesson: how far pictures are moved along the covariance."""
    lowest_time: float = 0.85
    """Lowest time of lessons. Below it a picture is settled, and would be blended with its neighbours."""
    editing: bool = True
    """Whether edits are judged too, for rewards that can."""
    draws: int = 2
    """Steps of each picture's trajectory that a student update looks at."""
    ema_decay: float = 0.9
    """Decay of the EMA of the branch that draws the pictures, per student update."""

    def __post_init__(self) -> None:
        if self.group < 2 or self.draws < 1:
            raise ValueError(f"need group >= 2, as pictures are compared, and draws >= 1, got {self}")
        if not 0 <= self.shared_noise < 1 or not 0 <= self.ema_decay < 1:
            raise ValueError(f"need 0 <= shared_noise < 1 and 0 <= ema_decay < 1, got {self}")
        if not 0 <= self.lowest_time <= 1 or self.strength <= 0:
            raise ValueError(f"need 0 <= lowest_time <= 1 and strength > 0, got {self}")


_TUNING = TuningSettings()


@dataclass(frozen=True)
class _Lesson:
    """What the looks at one batch share: how its pictures came about, where they are to move, and who is compared.

    states: (steps + 1, group * B, n, C); move: (group * B, n, C); student, reference: velocities over the batch.
    """

    scales: GuidanceScales
    states: Tensor
    move: Tensor
    student: Velocity
    reference: Velocity


class RewardTuning(DistillationStage):
    """A reward's lesson for a sampler of several steps, without a gradient through sampler, decoder or reward.

    The moving average of the student draws several pictures of each document from neighbouring noise, and the reward
    says which are better than the others. Early in their trajectories, the student's velocity is moved to where the
    pictures of the group get better. It stays that of the initial branch where there is nothing to learn. ReFL needs
    one step and a differentiable reward; this needs neither. Not in the paper; groups of pictures that teach by their
    differences are DiffusionNFT's (arXiv 2509.16117), whose regression has such a covariance for its minimum.

    Args:
        model: folder of the original model.
        reward: what compares the pictures of a document.
        init_from: the branch of stage 2 or 3.
        tuning: settings of the method.
        student: how the student is trained.
        settings: what all stages have in common.
    """

    def __init__(
        self,
        model: str,
        reward: Reward,
        init_from: str | None = None,
        tuning: TuningSettings = _TUNING,
        student: Training = DEFAULT_TRAINING,
        settings: StageSettings = _SETTINGS,
    ) -> None:
        if settings.steps < 2:
            raise ValueError(
                f"settings.steps is {settings.steps}: RewardTuning tunes samplers of 2 steps and more, ReFL those of 1"
            )
        super().__init__(model, init_from, student, settings)
        self.tuning = tuning
        self.ema = ema_copy(self.student)
        self.leave_out_frozen("ema", self.student)
        self.reference = self.initial_branch()
        self.leave_out("reference")
        self.reward = reward.requires_grad_(False)
        self.leave_out("reward")
        self._tokenizer = Tokenizer.from_pretrained(model)
        self.reward.attach(self.model, self._tokenizer)
        self.add_loss(MeanSquaredError("tuning"))

    @property
    def branch(self) -> GenerationBranch:
        """The moving average of the student, which draws the pictures."""
        return self.ema

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """Pictures of every document, their rewards, and one update of the student."""
        prepared, generator = self.begin(batch.repeat(self.tuning.group), teacher=not self.takes_scales)
        noise, scales = self.draw_neighbours(prepared, generator), self.draw_scales(prepared, generator)
        with self.timed("trajectory"), torch.no_grad():
            states = trajectory(self.velocity(prepared, scales, self.ema), noise, self.grid_t)
        with self.timed("reward"):
            move = self.move(prepared, states[-1])
        with self.timed("student"):
            own, held = (self.velocity(prepared, scales, branch) for branch in (self.student, self.reference))
            lesson = _Lesson(scales, states, move, own, held)
            looks = [self.look(prepared, lesson, generator) for _ in range(self.tuning.draws)]
            if self.update("student", torch.stack(looks).mean()):
                update_ema(self.ema, self.student, self.tuning.ema_decay)

    def draw_neighbours(self, prepared: PreparedBatch, generator: torch.Generator) -> Tensor:
        """Standard normal latent tokens (group * B, n, C), alike in each group."""
        own, group, shared = self.draw_noise(prepared, generator), self.tuning.group, self.tuning.shared_noise
        common = self.draw_noise(prepared, generator)[: len(own) // group].repeat(group, 1, 1)
        return shared**0.5 * common + (1 - shared) ** 0.5 * own

    def velocity(self, prepared: PreparedBatch, scales: GuidanceScales, branch: GenerationBranch) -> Velocity:
        """The velocity of a branch on a batch, with gradients where they are enabled."""
        return branch_velocity(self.model, prepared, branch, scales)

    @torch.no_grad()
    def move(self, prepared: PreparedBatch, x_0: Tensor) -> Tensor:
        """How pictures x_0 (group * B, n, C) are to move, by what the reward says of them decoded. Logs its mean.

        Edits are scored even if they are not to be judged: with sharded weights, all processes must run the same
        layers, whatever their documents are.
        """
        pictures = self.model.decode_latents(x_0, prepared.grid)
        rewards = scored(self.reward, pictures, reward_prompts(prepared.batch, self._tokenizer))
        advantages = group_advantages(rewards, self.tuning.group)
        self.log_at_step({"reward/tuning": rewards.mean()}, len(prepared))
        return self.tuning.strength * group_covariance(advantages, x_0, self.tuning.group)

    def look(self, prepared: PreparedBatch, lesson: _Lesson, generator: torch.Generator) -> Tensor:
        """The student's loss at one step of each trajectory."""
        rows = torch.arange(len(prepared), device=self.device)
        steps = torch.randint(self.settings.steps, (len(prepared),), generator=generator).to(self.device)
        t, s, x_t = self.grid_t[steps], self.grid_t[steps + 1], lesson.states[steps, rows]
        with torch.no_grad():
            drawn = (x_t - lesson.states[steps + 1, rows]) / (t - s)[:, None, None]
            held = lesson.reference(x_t, t)
        taught = (t >= self.tuning.lowest_time) & (self.tuning.editing | ~prepared.has_image)
        # At all times, a velocity that is lower by so much leads to a picture that is higher by so much.
        target = torch.where(taught[:, None, None], drawn - lesson.move, held)
        velocity = lesson.student(x_t, t)
        step = self.step(prepared, lesson.scales, x_t=x_t, t=t, velocity=velocity, output=velocity, target=target)
        return self.total(step, "student")
