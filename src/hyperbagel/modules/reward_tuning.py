"""Tuning of a sampler of several steps by a reward that needs no gradient, after stage 2 or 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.flow.randomness import integers, normal
from hyperbagel.flow.trajectory import Velocity, trajectory
from hyperbagel.losses.advantage import group_advantages, group_covariance
from hyperbagel.losses.regression import Regression
from hyperbagel.rewards.base import Reward, scored
from hyperbagel.rewards.prompts import reward_prompts
from hyperbagel.training.averages import ema_copy, update_ema
from hyperbagel.training.distillation import DistillationSettings, DistillationStage
from hyperbagel.training.episode import Episode
from hyperbagel.training.memory import DocumentCost
from hyperbagel.training.networks import Training


@dataclass(frozen=True, kw_only=True)
class RewardTuningMethod:
    """Settings of reward tuning."""

    group: int = 8
    """Pictures of each document, which are compared with each other."""
    shared_noise: float = 0.9
    """Share of the variance of their noise that the pictures of a group have in common. Neighbours differ in little but
    what the reward sees, so they teach little else."""
    strength: float = 1.0
    """How far pictures are moved along the covariance."""
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


@dataclass(frozen=True)
class _Drawn:
    """What a batch's pictures came from, and where they are to move.

    states: (steps + 1, group * B, n, C) of their trajectories; move: (group * B, n, C); student, reference: velocities
    over the batch.
    """

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
        init_from: the branch of stage 2 or 3.
        reward: what compares the pictures of a document.
        method: settings of the method.
        student: how the student is trained.
        settings: what all distillation stages have in common.

    Examples:
        >>> from hyperbagel.rewards.bagel import BagelReward
        >>> stage = RewardTuning(model=folder, reward=BagelReward(probability=True))
        >>> stage.nfe
        6
    """

    asks_teacher = False

    def __init__(
        self,
        *,
        model: str,
        init_from: str | None = None,
        reward: Reward,
        method: RewardTuningMethod = RewardTuningMethod(),
        student: Training = Training(),
        settings: DistillationSettings = DistillationSettings(),
    ) -> None:
        if settings.steps < 2:
            raise ValueError(
                f"settings.steps is {settings.steps}: RewardTuning tunes samplers of 2 steps and more, ReFL those of 1"
            )
        super().__init__(model, init_from, student, settings)
        self.method = method
        self.ema = ema_copy(self.student)
        self.leave_out_frozen("ema", self.student)
        self.reference = self.initial_branch()
        self.leave_out("reference")
        self.reward = reward.requires_grad_(False)
        self.leave_out("reward")
        self._tokenizer = Tokenizer.from_pretrained(model)
        self.reward.attach(self.model, self._tokenizer)
        self.add_loss(Regression("tuning"))

    @property
    def branch(self) -> GenerationBranch:
        """The moving average of the student, which draws the pictures."""
        return self.ema

    def memory(self, cost: DocumentCost) -> dict[str, int]:
        """The pictures of a document keep their graphs together, draw by draw."""
        return self._memory(cost, passes=1, caches=1)

    def _memory(self, cost: DocumentCost, passes: int, caches: int) -> dict[str, int]:
        pictures = self.method.group
        return {
            "activations: student": pictures * self.method.draws * passes * cost.graph,
            "key-value caches": pictures * caches * cost.cache,
        }

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """Pictures of every document, their rewards, and one update of the student."""
        episode = self.begin(batch.repeat(self.method.group), self.draw_neighbours)
        with self.timed("trajectory"), torch.no_grad():
            states = trajectory(self.velocity(episode, self.ema), episode.noise, self.grid_t)
        with self.timed("reward"):
            move = self.move(episode, states[-1])
        with self.timed("student"):
            student, reference = (self.velocity(episode, branch) for branch in (self.student, self.reference))
            drawn = _Drawn(states, move, student, reference)
            losses = [self.step_loss(episode, drawn) for _ in range(self.method.draws)]
            if self.update("student", torch.stack(losses).mean()):
                update_ema(self.ema, self.student, self.method.ema_decay)

    def draw_neighbours(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Standard normal latent tokens of shape (group * B, n, C), alike in each group."""
        own, common = (normal(shape, generator) for _ in range(2))
        group, shared = self.method.group, self.method.shared_noise
        common = common[: len(own) // group].repeat(group, 1, 1)
        return shared**0.5 * common + (1 - shared) ** 0.5 * own

    def velocity(self, episode: Episode, branch: GenerationBranch) -> Velocity:
        """The velocity of a branch on a batch, with gradients where they are enabled."""
        return episode.velocity(branch)

    @torch.no_grad()
    def move(self, episode: Episode, x_0: Tensor) -> Tensor:
        """How pictures x_0 (group * B, n, C) are to move, by what the reward says of them decoded. Logs its mean.

        Edits are scored even if they are not to be judged: with sharded weights, all processes must run the same
        layers, whatever their documents are.
        """
        pictures = self.model.decode_latents(x_0, episode.grid)
        rewards = scored(self.reward, pictures, reward_prompts(episode.batch, self._tokenizer))
        advantages = group_advantages(rewards, self.method.group)
        self.log_at_step({"reward/tuning": rewards.mean()}, len(episode))
        return self.method.strength * group_covariance(advantages, x_0, self.method.group)

    def step_loss(self, episode: Episode, drawn: _Drawn) -> Tensor:
        """The student's loss at one step of each trajectory."""
        rows = torch.arange(len(episode), device=self.device)
        steps = integers(0, self.settings.steps, len(episode), episode.generator).to(self.device)
        t, s, x_t = self.grid_t[steps], self.grid_t[steps + 1], drawn.states[steps, rows]
        with torch.no_grad():
            made = (x_t - drawn.states[steps + 1, rows]) / (t - s)[:, None, None]
            unchanged = drawn.reference(x_t, t, s)
        moved = (t >= self.method.lowest_time) & (self.method.editing | ~episode.has_image)
        # At all times, a velocity that is lower by so much leads to a picture that is higher by so much.
        target = torch.where(moved[:, None, None], made - drawn.move, unchanged)
        step = episode.step(x_t=x_t, t=t, velocity=drawn.student(x_t, t, s), target_velocity=target)
        return self.total(step, "student")
