"""Stages 1 and 2 of the 6-NFE model: CFG distillation, and trajectory-segmented consistency distillation (TSCD)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hyperbagel.bagel.branch import GenerationBranch, GuidanceScales
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.critics.latent import CriticSettings, JudgedBatch, LatentCritic
from hyperbagel.flow.schedule import euler_step, interpolate, shift_time
from hyperbagel.losses.consistency import Segments, SegmentTimes
from hyperbagel.losses.term import CriticLogits
from hyperbagel.losses.terms import Adversarial, Discrimination, MeanSquaredError
from hyperbagel.modules.adversarial import AdversarialSettings
from hyperbagel.modules.base import DistillationStage, StageSettings
from hyperbagel.modules.batches import PreparedBatch, branch_velocity, target_tokens, trajectory
from hyperbagel.modules.networks import DEFAULT_TRAINING, Training, ema_copy, frozen, update_ema

_SETTINGS = StageSettings()


class CFGDistillation(DistillationStage):
    """Stage 1: the guided teacher in one pass, with the guidance scales as inputs of the branch.

    Args:
        model: folder of the original model.
        student: how the student is trained.
        init_from: branch file to go on from; None starts from the original branch.
        timestep_shift: of the uniform training times; the paper found at least 3 necessary.
        settings: what all stages have in common.
    """

    def __init__(
        self,
        model: str,
        student: Training = DEFAULT_TRAINING,
        init_from: str | None = None,
        timestep_shift: float = 3.0,
        settings: StageSettings = _SETTINGS,
    ) -> None:
        super().__init__(model, init_from, student, settings)
        self.timestep_shift = timestep_shift
        self.add_loss(MeanSquaredError("cfg_distillation"))

    @property
    def nfe(self) -> int:
        """As many as the sampler takes steps."""
        return 0

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """One regression of the student's velocity to the teacher's guided one."""
        prepared, generator = self.begin(batch)
        noise, scales = self.draw_noise(prepared, generator), self.draw_scales(prepared, generator)
        t = shift_time(torch.rand(len(prepared), generator=generator), self.timestep_shift).to(self.device)
        with self.timed("encode"):
            x_t = interpolate(target_tokens(self.model, prepared), noise, t[:, None, None])
        with self.timed("teacher"):
            target = self.teacher.bind(self.model, prepared, scales).velocity(x_t, t)
        with self.timed("student"):
            velocity = self.model.velocity(x_t, t, prepared.contexts.full, prepared.grid, self.student, scales)
            step = self.step(prepared, scales, x_t=x_t, t=t, velocity=velocity, output=velocity, target=target)
            self.update("student", self.total(step, "student"))


@dataclass(frozen=True, kw_only=True)
class TSCDSettings(AdversarialSettings):
    """Settings of TSCD, with those of its adversarial game."""

    segments: int = 3
    """Segments of the training grid."""
    grid_steps: int = 48
    """Euler steps of the training grid."""
    teacher_steps: int = 1
    """Euler steps of the teacher before the EMA student jumps."""
    whole_segments: bool = False
    """Jump from upper to lower ends of segments only. From t_n one velocity cannot lead to several t_end at once, so
    with as many segments as the sampler has steps, its steps are just the jumps that were trained."""
    on_policy: bool = False
    """Start at states of the EMA student's own sampling instead of noised data, from which guided sampling strays;
    needs whole segments, as many as the sampler has steps."""
    ema_decay: float = 0.95
    """Decay of the EMA of the target branch per student update."""
    adversarial_weight: float = 1.0
    """Weight of the adversarial comparison, the only one that the paper has; 0 leaves it out."""
    mse_weight: float = 0.0
    """Weight of the comparison by mean squared error; 0 leaves it out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.adversarial_weight and not self.mse_weight:
            raise ValueError("TSCD needs adversarial_weight or mse_weight above 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}: it must be in [0, 1)")


_TSCD = TSCDSettings()
_CRITIC = CriticSettings()


class TSCD(DistillationStage):
    """Stage 2: trajectory-segmented consistency, compared by a discriminator instead of a distance.

    From a grid point t_n the student jumps to t_end inside its segment. The teacher makes an Euler step (or several),
    from where the EMA student jumps to the same t_end. The critic is to tell the first latent (fake) from the second
    (real).

    Args:
        model: folder of the original model.
        init_from: the branch of stage 1.
        student, critic: how the networks are trained.
        tscd: settings of the method.
        heads: settings of the critic's heads.
        settings: what all stages have in common.
    """

    def __init__(
        self,
        model: str,
        init_from: str | None = None,
        student: Training = DEFAULT_TRAINING,
        critic: Training = DEFAULT_TRAINING,
        tscd: TSCDSettings = _TSCD,
        heads: CriticSettings = _CRITIC,
        settings: StageSettings = _SETTINGS,
    ) -> None:
        if tscd.on_policy and not (tscd.whole_segments and tscd.segments == settings.steps):
            raise ValueError(
                f"on_policy needs whole_segments and as many segments as settings.steps ({settings.steps}), got {tscd}"
            )
        super().__init__(model, init_from, student, settings)
        self.tscd = tscd
        self.segments = Segments(
            tscd.segments, tscd.grid_steps, settings.shift, tscd.teacher_steps, tscd.whole_segments
        )
        self.ema = ema_copy(self.student)
        self.leave_out_frozen("ema", self.student)
        self.critic: LatentCritic | None = None
        self.critic_network = "critic" if tscd.adversarial_weight else None
        if tscd.adversarial_weight:
            self.critic = LatentCritic(self.branch_like_teacher(critic), self.model.config, heads)
            self.add_network("critic", critic)
            self.add_loss(Discrimination("latent", tscd.objective, r1_weight=tscd.r1_weight))
            self.add_loss(Adversarial("latent", tscd.objective, tscd.adversarial_weight))
        if tscd.mse_weight:
            self.add_loss(MeanSquaredError("consistency", tscd.mse_weight))

    @property
    def branch(self) -> GenerationBranch:
        """The EMA of the student."""
        return self.ema

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """One update of the critic, then (every `student_every` batches) one of the student."""
        prepared, generator = self.begin(batch)
        noise, scales = self.draw_noise(prepared, generator), self.draw_scales(prepared, generator)
        times = SegmentTimes(*(t.to(self.device) for t in self.segments.draw(len(prepared), generator)))
        x_t = self.start(prepared, scales, noise, times.t_n)
        with self.timed("target"):
            real = self.target(prepared, scales, x_t, times)
        student_turn = int(self.batches_seen) % self.tscd.student_every == 0
        with self.timed("student"), torch.set_grad_enabled(student_turn):
            velocity = self.model.velocity(x_t, times.t_n, prepared.contexts.full, prepared.grid, self.student, scales)
        fake = jump(x_t, velocity, times.t_n, times.t_end)
        # Compared as the velocities that lead there: distances would weigh long jumps most, which are the late ones.
        target = (x_t - real) / (times.t_n - times.t_end)[:, None, None]
        step = self.step(prepared, scales, x_t=x_t, t=times.t_n, velocity=velocity, output=velocity, target=target)
        judged = JudgedBatch(prepared.contexts.full, prepared.grid, scales)
        if self.critic is not None:
            with self.timed("critic"):
                noisy = self.tscd.perturbed(real, generator)
                fake_logits, real_logits, *rest = self.critic.compare(
                    self.model, (fake.detach(), real, *noisy), times.t_end, judged
                )
                logits = CriticLogits(fake_logits, real_logits, *rest)
                self.update("critic", self.total(step.detached().judged({"latent": logits}), "critic"))
        if student_turn:
            with self.timed("student"), frozen(*filter(None, [self.critic])):
                if self.critic is not None:
                    logits = CriticLogits(self.critic(self.model, fake, times.t_end, judged))
                    step = step.judged({"latent": logits})
                if self.update("student", self.total(step, "student")):
                    update_ema(self.ema, self.student, self.tscd.ema_decay)

    @torch.no_grad()
    def start(self, prepared: PreparedBatch, scales: GuidanceScales, noise: Tensor, t: Tensor) -> Tensor:
        """Where the jumps begin at times t (B,): noised data, or states of the EMA student's sampling. (B, n, C)."""
        if not self.tscd.on_policy:
            with self.timed("encode"):
                return interpolate(target_tokens(self.model, prepared), noise, t[:, None, None])
        with self.timed("trajectory"):
            states = trajectory(branch_velocity(self.model, prepared, self.ema, scales), noise, self.grid_t)
        reached = (self.grid_t[:, None] - t).abs().argmin(0)
        return states[reached, torch.arange(len(t), device=t.device)]

    @torch.no_grad()
    def target(self, prepared: PreparedBatch, scales: GuidanceScales, x_t: Tensor, times: SegmentTimes) -> Tensor:
        """The real latents at t_end: Euler steps of the teacher, then the EMA student's jump. (B, n, C)."""
        teacher = self.teacher.bind(self.model, prepared, scales)
        for t, s in pairwise(times.path):
            x_t = jump(x_t, teacher.velocity(x_t, t), t, s)
        # Not by looking at the times: all processes of a sharded branch must decide alike.
        if self.segments.teacher_arrives:
            return x_t
        velocity = self.model.velocity(x_t, times.t_next, prepared.contexts.full, prepared.grid, self.ema, scales)
        return jump(x_t, velocity, times.t_next, times.t_end)


def jump(x_t: Tensor, velocity: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Euler jump of every image from its own time to its own time, in float32. x_t, velocity: (B, n, C); t, s: (B,)."""
    return euler_step(x_t.float(), velocity.float(), t[:, None, None], s[:, None, None])
