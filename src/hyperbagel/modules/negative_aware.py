"""Negative-aware fine-tuning (NFT) of a branch of several steps by a reward, behind stage 2 or 3."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbagel.bagel.branch import GenerationBranch, GuidanceScales
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.flow.schedule import interpolate, velocity_target
from hyperbagel.losses.negative_aware import group_advantages
from hyperbagel.losses.term import Lesson
from hyperbagel.losses.terms import MeanSquaredError, NegativeAware
from hyperbagel.modules.base import DistillationStage, StageSettings
from hyperbagel.modules.batches import PreparedBatch, Velocity, branch_velocity, trajectory
from hyperbagel.modules.networks import DEFAULT_TRAINING, Training, ema_copy, update_ema
from hyperbagel.modules.reward_term import reward_prompts
from hyperbagel.rewards.base import Reward

_SETTINGS = StageSettings()


@dataclass(frozen=True)
class NFTSettings:
    """Settings of NFT.

    group: pictures of each document, which are compared with each other; draws: times and noises at which a student
    update looks at each picture; lowest_time: below it there is no lesson. What is to be seen is settled early, and a
    velocity that was made for long steps is at low noise not the mean that the method takes it for; editing: whether
    edits are judged too, for rewards that can; beta: how far v+ and v- lie from the old velocity; the higher, the
    smaller the lesson; reference_weight: of the squared distance to the initial branch where there is no lesson: at
    low noise, and of edits that are not judged; ema_decay: of the branch that draws the pictures, a student update.
    """

    group: int = 8
    draws: int = 2
    lowest_time: float = 0.7
    editing: bool = True
    beta: float = 1.0
    reference_weight: float = 1.0
    ema_decay: float = 0.95

    def __post_init__(self) -> None:
        if self.group < 2 or self.draws < 1:
            raise ValueError(f"need group >= 2, as pictures are compared, and draws >= 1, got {self}")
        if not 0 <= self.lowest_time <= 1 or self.beta <= 0 or not 0 <= self.ema_decay < 1:
            raise ValueError(f"need 0 <= lowest_time <= 1, beta > 0 and 0 <= ema_decay < 1, got {self}")


_NFT = NFTSettings()


class NFT(DistillationStage):
    """A reward's lesson for a sampler of several steps, without a gradient through sampler, decoder or reward.

    The moving average of the student draws several pictures of each document, and the reward says which are better
    than their group. Those are noised anew, and the student's velocity is drawn to what leads to the good ones and
    away from what leads to the bad ones. ReFL needs one step and a differentiable reward; this needs neither.

    Args:
        model: folder of the original model.
        reward: what compares the pictures of a document.
        init_from: the branch of stage 2 or 3.
        nft: settings of the method.
        student: how the student is trained.
        settings: what all stages have in common.
    """

    def __init__(
        self,
        model: str,
        reward: Reward,
        init_from: str | None = None,
        nft: NFTSettings = _NFT,
        student: Training = DEFAULT_TRAINING,
        settings: StageSettings = _SETTINGS,
    ) -> None:
        if settings.steps < 2:
            raise ValueError(
                f"settings.steps is {settings.steps}: NFT tunes samplers of 2 steps and more, ReFL those of 1"
            )
        super().__init__(model, init_from, student, settings)
        self.nft = nft
        self.ema = ema_copy(self.student)
        self.leave_out_frozen("ema", self.student)
        self.reward = reward.requires_grad_(False)
        self.leave_out("reward")
        self._tokenizer = Tokenizer.from_pretrained(model)
        self.reward.attach(self.model, self._tokenizer)
        self.reference: GenerationBranch | None = None
        self.add_loss(NegativeAware(beta=nft.beta))
        if nft.reference_weight:
            self.reference = self.initial_branch()
            self.leave_out("reference")
            self.add_loss(MeanSquaredError("reference", nft.reference_weight))

    @property
    def branch(self) -> GenerationBranch:
        """The moving average of the student, which draws the pictures."""
        return self.ema

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """Pictures of every document, their rewards, and one update of the student."""
        prepared, generator = self.begin(batch.repeat(self.nft.group), teacher=not self.takes_scales)
        noise, scales = self.draw_noise(prepared, generator), self.draw_scales(prepared, generator)
        with self.timed("trajectory"), torch.no_grad():
            x_0 = trajectory(self.velocity(prepared, scales, self.ema), noise, self.grid_t)[-1]
        with self.timed("reward"):
            advantage = self.advantages(prepared, x_0)
        with self.timed("student"):
            looks = [self.look(prepared, scales, x_0, advantage, generator) for _ in range(self.nft.draws)]
            if self.update("student", torch.stack(looks).mean()):
                update_ema(self.ema, self.student, self.nft.ema_decay)

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """At which a student update looks at its pictures, (count,): those at which the sampler asks."""
        return self.grid_t[torch.randint(self.settings.steps, (count,), generator=generator).to(self.device)]

    def velocity(self, prepared: PreparedBatch, scales: GuidanceScales, branch: GenerationBranch) -> Velocity:
        """The velocity of a branch on a batch, with gradients where they are enabled."""
        return branch_velocity(self.model, prepared, branch, scales)

    @torch.no_grad()
    def advantages(self, prepared: PreparedBatch, x_0: Tensor) -> Tensor:
        """What the reward says of the decoded x_0 (B, n, C) within the groups: (B,). Logs the mean reward.

        Also of edits that are not to be judged: with sharded weights, all processes must run the same layers, whatever
        their documents are.
        """
        pictures = self.model.decode_latents(x_0, prepared.grid)
        rewards = self.reward.score(pictures, reward_prompts(prepared.batch, self._tokenizer))
        self.log_at_step({"reward": rewards.mean()}, len(prepared))
        return group_advantages(rewards, self.nft.group)

    def look(
        self,
        prepared: PreparedBatch,
        scales: GuidanceScales,
        x_0: Tensor,
        advantage: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """The student's loss on pictures x_0 (B, n, C) with advantages (B,), noised anew."""
        noise = self.draw_noise(prepared, generator)
        t = self.draw_times(len(prepared), generator)
        x_t = interpolate(x_0, noise, t[:, None, None])
        with torch.no_grad():
            behaviour = self.velocity(prepared, scales, self.ema)(x_t, t)
            held = None
            if self.reference is not None:
                held = self.velocity(prepared, scales, self.reference)(x_t, t)
        velocity = self.velocity(prepared, scales, self.student)(x_t, t)
        taught = (t >= self.nft.lowest_time) & (self.nft.editing | ~prepared.has_image)
        lesson = Lesson(behaviour, velocity_target(x_0, noise), advantage * taught)
        if held is not None:
            held = torch.where(taught[:, None, None], velocity.detach(), held)
        step = self.step(prepared, scales, x_t=x_t, t=t, velocity=velocity, output=velocity, target=held, lesson=lesson)
        return self.total(step, "student")
