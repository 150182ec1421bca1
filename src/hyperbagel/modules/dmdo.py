"""Stage 3 of the 6-NFE model: distribution matching distillation via ODE (DMDO)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.flow.schedule import interpolate, interval_above, predict_x0, shift_time, velocity_target
from hyperbagel.flow.trajectory import trajectory
from hyperbagel.losses.distribution_matching import DistributionMatching
from hyperbagel.losses.regression import Regression
from hyperbagel.training.distillation import DistillationSettings, DistillationStage
from hyperbagel.training.episode import Episode
from hyperbagel.training.memory import DocumentCost
from hyperbagel.training.networks import Training


@dataclass(frozen=True, kw_only=True)
class DMDOMethod:
    """Settings of DMDO."""

    fake_updates: int = 5
    """Updates of the fake branch on each trajectory, at fresh times."""
    student_every: int = 1
    """Trajectories per student update; fake updates per student update are the product of the two."""
    times: tuple[float, float] = (0.02, 0.98)
    """Range of t', before the timestep shift."""
    renoise: Literal["ode", "sde"] = "ode"
    """What x0_hat and x_0 are mixed with: "ode" with the x_T that they came from, "sde" with fresh noise as in DMD, for
    the ablation."""
    through: Literal["step", "trajectory"] = "step"
    """What the student's gradient passes: "step", one step of the trajectory, whose estimate of x_0 is judged, or
    "trajectory", all of them; then their end is judged, which is what the fake branch knows, but activations of all
    steps are kept."""
    fake_from: str | None = None
    """File of the branch that the fake branch starts as, such as that of stage 1, which is near the student's
    distribution while the teacher is the guided original; None: it starts as the teacher."""
    sources: tuple[str, ...] | None = None
    """Names of the data sources on whose documents distributions are matched; None: on all. On others the student has
    only the loss terms that were added to the stage."""

    def __post_init__(self) -> None:
        if self.fake_updates < 1 or self.student_every < 1 or not 0 <= self.times[0] < self.times[1] <= 1:
            raise ValueError(f"need fake_updates and student_every >= 1 and 0 <= times[0] < times[1] <= 1, got {self}")


class DMDO(DistillationStage):
    """Stage 3: the student's distribution moves to that of the guided teacher.

    The student's ODE runs from x_T to x_0 without gradients. The fake branch learns the velocity x_T - x_0 between its
    ends. The student makes one step of the same trajectory again, with gradients, and its estimate of x_0 is pushed
    from where the fake branch sees it to where the teacher does. With `through: trajectory` the ODE itself runs with
    gradients, and its x_0 is pushed.

    Args:
        model: folder of the original model.
        init_from: the branch of stage 2.
        method: settings of the method.
        student, fake: how the networks are trained.
        settings: what all distillation stages have in common.

    Examples:
        >>> stage = DMDO(model=folder)
        >>> sorted(stage.networks)
        ['fake', 'student']
    """

    def __init__(
        self,
        *,
        model: str,
        init_from: str | None = None,
        method: DMDOMethod = DMDOMethod(),
        student: Training = Training(),
        fake: Training = Training(),
        settings: DistillationSettings = DistillationSettings(),
    ) -> None:
        super().__init__(model, init_from, student, settings)
        self.method = method
        self.fake = self.branch_like_teacher(fake, method.fake_from)
        self.add_network("fake", fake, "critic")
        self.add_loss(Regression("fake", update="critic"))
        self.matching = DistributionMatching(sources=method.sources)
        self.add_loss(self.matching)

    def memory(self, cost: DocumentCost) -> dict[str, int]:
        """That of one step, or of a whole trajectory, which waits while the fake branch learns."""
        own = super().memory(cost)
        if self.method.through == "step":
            return own
        return own | {"activations: student": self.settings.steps * cost.graph, "activations: fake": cost.graph}

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """One trajectory, `fake_updates` updates of the fake branch on it, and (in turn) one update of the student."""
        episode = self.begin(batch)
        student_turn = self.batches_seen % self.method.student_every == 0
        whole = student_turn and self.method.through == "trajectory"
        with self.timed("trajectory"), torch.set_grad_enabled(whole):
            states = trajectory(episode.velocity(self.student), episode.noise, self.grid_t)
        if self.matching.applies_to(batch):
            with self.timed("critic"):
                for _ in range(self.method.fake_updates):
                    self.update_fake(episode, states.detach())
        if student_turn:
            with self.timed("student"):
                self.update_student(episode, states)

    def update_fake(self, episode: Episode, states: Tensor) -> None:
        """Regress the fake branch to the velocity between the ends of a trajectory (steps + 1, B, n, C).

        Examples:
            >>> from hyperbagel.modules import DMDO
            >>> DMDO(model=folder).method.fake_updates  # updates on each trajectory
            5
        """
        t = self.draw_times(episode)
        x_noise, x_0 = self.renoising(episode, states), states[-1]
        x_t = interpolate(x_0, x_noise, t[:, None, None])
        velocity = episode.velocity(self.fake)(x_t, t)
        step = episode.step(x_t=x_t, t=t, velocity=velocity, target_velocity=velocity_target(x_0, x_noise))
        self.update("fake", self.total(step, "critic"))

    def update_student(self, episode: Episode, states: Tensor) -> None:
        """Apply DMD's gradient to an x_0 of a trajectory (steps + 1, B, n, C): of a repeated step, or its own."""
        if self.method.through == "trajectory":
            x_t, t = states[0], torch.ones(len(episode), device=self.device)
            velocity, x0 = velocity_target(states[-1], states[0]), states[-1]
        else:
            x_t, t, velocity, x0 = self.repeated_step(episode, states)
        step = episode.step(x_t=x_t, t=t, velocity=velocity, x0=x0)
        if self.matching.applies_to(episode.batch):
            real, fake = self.score(episode, x0.detach(), self.renoising(episode, states))
            step = replace(step, real_x0=real, fake_x0=fake)
        self.update("student", self.total(step, "student"))

    def repeated_step(self, episode: Episode, states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step of each trajectory with gradients: its x_t (B, n, C), t (B,), velocity and estimate of x_0.

        Examples:
            >>> from hyperbagel.modules import DMDO
            >>> stage = DMDO(model=folder)
            >>> states = episode.noise.expand(stage.settings.steps + 1, -1, -1, -1)
            >>> x_t, t, velocity, x0 = stage.repeated_step(episode, states)
            >>> x0.shape == episode.noise.shape, t.shape == (len(episode),)
            (True, True)
        """
        grid_t = self.grid_t
        start = interval_above(self.draw_times(episode), grid_t)
        x_t, t = states[start, torch.arange(len(episode), device=self.device)], grid_t[start]
        velocity = episode.velocity(self.student)(x_t, t, grid_t[start + 1]).float()
        return x_t, t, velocity, predict_x0(x_t, velocity, t[:, None, None])

    @torch.no_grad()
    def score(self, episode: Episode, x0_hat: Tensor, x_noise: Tensor) -> tuple[Tensor, Tensor]:
        """What teacher and fake branch take for x_0 behind the same re-noised estimate, each (B, n, C).

        Examples:
            >>> from hyperbagel.modules import DMDO
            >>> stage = DMDO(model=folder)
            >>> real, fake = stage.score(episode, episode.x_0, episode.noise)
            >>> real.shape == fake.shape == episode.x_0.shape
            True
        """
        t = self.draw_times(episode, self.method.times)
        column = t[:, None, None]
        x_t = interpolate(x0_hat, x_noise, column)
        with self.timed("teacher"):
            real = self.teacher.over(episode).velocity(x_t, t)
        fake = episode.velocity(self.fake)(x_t, t)
        return predict_x0(x_t, real.float(), column), predict_x0(x_t, fake.float(), column)

    def draw_times(self, episode: Episode, limits: tuple[float, float] = (0.0, 1.0)) -> Tensor:
        """Uniform times in a range, then shifted as the sampler's: (B,)."""
        return shift_time(episode.uniform(limits), self.settings.shift)

    def renoising(self, episode: Episode, states: Tensor) -> Tensor:
        """The noisy end for interpolation: the trajectory's own x_T, or fresh noise in the ablation. (B, n, C)."""
        return states[0] if self.method.renoise == "ode" else episode.other_noise()
