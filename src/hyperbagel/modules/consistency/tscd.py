"""Stage 2: trajectory-segmented consistency distillation (TSCD)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.bagel.transfer import moved
from hyperbagel.critics.latent import LatentCritic, Start
from hyperbagel.flow.schedule import interpolate, jump
from hyperbagel.flow.segments import Segments, SegmentTimes
from hyperbagel.flow.trajectory import trajectory
from hyperbagel.losses.regression import Regression
from hyperbagel.training.adversarial import AdversarialGame, AdversarialSettings
from hyperbagel.training.averages import ema_copy, update_ema
from hyperbagel.training.distillation import DistillationSettings, DistillationStage
from hyperbagel.training.episode import Episode
from hyperbagel.training.memory import DocumentCost, together
from hyperbagel.training.networks import Training, frozen


@dataclass(frozen=True, kw_only=True)
class TSCDMethod(AdversarialSettings):
    """Settings of TSCD, with those of its adversarial game.

    Examples:
        >>> TSCDMethod(segments=6, grid_steps=24, whole_segments=True, teacher_steps=4).ema_decay
        0.95
    """

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
    show_start: bool = False
    """Show the critic where jumps began, beside where they ended. What is noise to it otherwise is known then."""
    mse_weight: float = 0.0
    """Weight of the comparison by mean squared error; 0 leaves it out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.adversarial_weight and not self.mse_weight:
            raise ValueError("TSCD needs adversarial_weight or mse_weight above 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}: it must be in [0, 1)")


class TSCD(DistillationStage):
    """Stage 2: trajectory-segmented consistency, compared by a discriminator instead of a distance.

    From a grid point t_n the student jumps to t_end inside its segment. The teacher makes an Euler step (or several),
    from where the EMA student jumps to the same t_end. The critic is to tell the first latent (fake) from the second
    (real).

    Args:
        model: folder of the original model.
        init_from: the branch of stage 1.
        method: settings of the method.
        student, critic: how the networks are trained.
        settings: what all distillation stages have in common.

    Examples:
        >>> from hyperbagel.modules.consistency.tscd import TSCDMethod
        >>> stage = TSCD(model=folder, method=TSCDMethod(adversarial_weight=0, mse_weight=1))
        >>> stage.nfe, stage.branch is stage.ema
        (6, True)
    """

    def __init__(
        self,
        *,
        model: str,
        init_from: str | None = None,
        method: TSCDMethod = TSCDMethod(),
        student: Training = Training(),
        critic: Training = Training(),
        settings: DistillationSettings = DistillationSettings(),
    ) -> None:
        if method.on_policy and not (method.whole_segments and method.segments == settings.steps):
            raise ValueError(
                f"on_policy needs whole_segments and as many segments as settings.steps ({settings.steps}): {method}"
            )
        super().__init__(model, init_from, student, settings)
        self.method = method
        self.segments = Segments(
            method.segments, method.grid_steps, settings.shift, method.teacher_steps, method.whole_segments
        )
        self.ema = ema_copy(self.student)
        self.leave_out_frozen("ema", self.student)
        self.critic: LatentCritic | None = None
        self.game: AdversarialGame | None = None
        if method.adversarial_weight:
            self.game = AdversarialGame(self, critic, method, method.adversarial_weight, method.show_start)
        if method.mse_weight:
            self.add_loss(Regression("consistency", method.mse_weight))

    @property
    def branch(self) -> GenerationBranch:
        """The EMA of the student."""
        return self.ema

    def memory(self, cost: DocumentCost) -> dict[str, int]:
        """That of the student and of the critic."""
        own = super().memory(cost)
        return own if self.game is None else together(own, self.game.memory(cost))

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """One update of the critic, then (every `student_every` batches) one of the student."""
        episode = self.begin(batch)
        times = SegmentTimes(*(moved(t, self.device) for t in self.segments.draw(len(episode), episode.generator)))
        x_t = self.start(episode, times.t_n)
        with self.timed("target"):
            real = self.target(episode, x_t, times)
        student_turn = self.method.student_turn(self.batches_seen)
        with self.timed("student"), torch.set_grad_enabled(student_turn):
            velocity = episode.velocity(self.student)(x_t, times.t_n, times.t_end)
        fake = jump(x_t, velocity, times.t_n, times.t_end)
        # Compared as the velocities that lead there: distances would weigh long jumps most, which are the late ones.
        target = (x_t - real) / (times.t_n - times.t_end)[:, None, None]
        step = episode.step(x_t=x_t, t=times.t_n, velocity=velocity, target_velocity=target)
        start = Start(x_t, times.t_n) if self.method.show_start else None
        if self.game is not None:
            with self.timed("critic"):
                logits = self.game.compared(episode, fake, real, times.t_end, start)
                self.update("critic", self.total(step.detached().judged({"latent": logits}), "critic"))
        if student_turn:
            with self.timed("student"), frozen(*filter(None, [self.critic])):
                if self.game is not None:
                    step = step.judged({"latent": self.game.seen(episode, fake, times.t_end, start)})
                if self.update("student", self.total(step, "student")):
                    update_ema(self.ema, self.student, self.method.ema_decay)

    @torch.no_grad()
    def start(self, episode: Episode, t: Tensor) -> Tensor:
        """Where the jumps begin at times t (B,): noised data, or states of the EMA student's sampling. (B, n, C)."""
        if not self.method.on_policy:
            with self.timed("encode"):
                return interpolate(episode.x_0, episode.noise, t[:, None, None])
        with self.timed("trajectory"):
            states = trajectory(episode.velocity(self.ema), episode.noise, self.grid_t)
        reached = (self.grid_t[:, None] - t).abs().argmin(0)
        return states[reached, torch.arange(len(t), device=t.device)]

    @torch.no_grad()
    def target(self, episode: Episode, x_t: Tensor, times: SegmentTimes) -> Tensor:
        """The real latents at t_end: Euler steps of the teacher, then the EMA student's jump. (B, n, C)."""
        teacher = self.teacher.over(episode)
        for t, s in pairwise(times.path):
            x_t = jump(x_t, teacher.velocity(x_t, t), t, s)
        # Not by looking at the times: all processes of a sharded branch must decide alike.
        if self.segments.teacher_arrives:
            return x_t
        velocity = episode.velocity(self.ema)(x_t, times.t_next, times.t_end)
        return jump(x_t, velocity, times.t_next, times.t_end)
