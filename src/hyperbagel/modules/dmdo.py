"""Stage 3 of the 6-NFE model: distribution matching distillation via ODE (DMDO)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hyperbagel.bagel.branch import GuidanceScales
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.flow.schedule import interpolate, predict_x0, shift_time, velocity_target
from hyperbagel.losses.distribution_matching import interval_above
from hyperbagel.losses.terms import DistributionMatching, MeanSquaredError
from hyperbagel.modules.base import DistillationStage, StageSettings
from hyperbagel.modules.batches import PreparedBatch, branch_velocity, trajectory
from hyperbagel.modules.networks import DEFAULT_TRAINING, Training


@dataclass(frozen=True)
class DMDOSettings:
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


_DMDO = DMDOSettings()
_SETTINGS = StageSettings()


class DMDO(DistillationStage):
    """Stage 3: the student's distribution moves to that of the guided teacher.

    The student's ODE runs from x_T to x_0 without gradients. The fake branch learns the velocity x_T - x_0 between its
    ends. The student makes one step of the same trajectory again, with gradients, and its estimate of x_0 is pushed
    from where the fake branch sees it to where the teacher does. With `through: trajectory` the ODE itself runs with
    gradients, and its x_0 is pushed.

    Args:
        model: folder of the original model.
        init_from: the branch of stage 2.
        student, fake: how the networks are trained.
        dmdo: settings of the method.
        settings: what all stages have in common.
    """

    critic_network = "fake"

    def __init__(
        self,
        model: str,
        init_from: str | None = None,
        student: Training = DEFAULT_TRAINING,
        fake: Training = DEFAULT_TRAINING,
        dmdo: DMDOSettings = _DMDO,
        settings: StageSettings = _SETTINGS,
    ) -> None:
        super().__init__(model, init_from, student, settings)
        self.dmdo = dmdo
        self.fake = self.branch_like_teacher(fake, dmdo.fake_from)
        self.add_network("fake", fake)
        self.add_loss(MeanSquaredError("fake", update="critic"))
        self.matching = DistributionMatching(sources=dmdo.sources)
        self.add_loss(self.matching)

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """One trajectory, `fake_updates` updates of the fake branch on it, and (in turn) one update of the student."""
        prepared, generator = self.begin(batch)
        noise, scales = self.draw_noise(prepared, generator), self.draw_scales(prepared, generator)
        student_turn = int(self.batches_seen) % self.dmdo.student_every == 0
        whole = student_turn and self.dmdo.through == "trajectory"
        with self.timed("trajectory"), torch.set_grad_enabled(whole):
            states = trajectory(branch_velocity(self.model, prepared, self.student, scales), noise, self.grid_t)
        if self.matching.concerns(batch):
            with self.timed("critic"):
                for _ in range(self.dmdo.fake_updates):
                    self.update_fake(prepared, scales, states.detach(), generator)
        if student_turn:
            with self.timed("student"):
                self.update_student(prepared, scales, states, generator)

    def update_fake(
        self, prepared: PreparedBatch, scales: GuidanceScales, states: Tensor, generator: torch.Generator
    ) -> None:
        """Regress the fake branch to the velocity between the ends of a trajectory (steps + 1, B, n, C)."""
        t = self.draw_times(len(prepared), generator, (0.0, 1.0))
        x_noise, x_0 = self.renoising(states, generator), states[-1]
        x_t = interpolate(x_0, x_noise, t[:, None, None])
        velocity = self.model.velocity(x_t, t, prepared.contexts.full, prepared.grid, self.fake, scales)
        target = velocity_target(x_0, x_noise)
        step = self.step(prepared, scales, x_t=x_t, t=t, velocity=velocity, output=velocity, target=target)
        self.update("fake", self.total(step, "critic"))

    def update_student(
        self, prepared: PreparedBatch, scales: GuidanceScales, states: Tensor, generator: torch.Generator
    ) -> None:
        """Apply DMD's gradient to an x_0 of a trajectory (steps + 1, B, n, C): of a repeated step, or its own."""
        if self.dmdo.through == "trajectory":
            x_t, t = states[0], torch.ones(len(prepared), device=self.device)
            velocity, x0_hat = velocity_target(states[-1], states[0]), states[-1]
        else:
            x_t, t, velocity, x0_hat = self.repeated_step(prepared, scales, states, generator)
        step = self.step(prepared, scales, x_t=x_t, t=t, velocity=velocity, output=x0_hat)
        if self.matching.concerns(prepared.batch):
            x_noise = self.renoising(states, generator)
            real, fake = self.score(prepared, scales, x0_hat.detach(), x_noise, generator)
            step = replace(step, real_x0=real, fake_x0=fake)
        self.update("student", self.total(step, "student"))

    def repeated_step(
        self, prepared: PreparedBatch, scales: GuidanceScales, states: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step of each trajectory with gradients: its x_t (B, n, C), t (B,), velocity and estimate of x_0."""
        grid_t = self.grid_t
        start = interval_above(self.draw_times(len(prepared), generator, (0.0, 1.0)), grid_t)
        x_t, t = states[start, torch.arange(len(prepared), device=self.device)], grid_t[start]
        velocity = self.model.velocity(x_t, t, prepared.contexts.full, prepared.grid, self.student, scales).float()
        return x_t, t, velocity, predict_x0(x_t, velocity, t[:, None, None])

    @torch.no_grad()
    def score(
        self,
        prepared: PreparedBatch,
        scales: GuidanceScales,
        x0_hat: Tensor,
        x_noise: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """What teacher and fake branch take for x_0 behind the same re-noised estimate, each (B, n, C)."""
        t = self.draw_times(len(prepared), generator, self.dmdo.times)
        column = t[:, None, None]
        x_t = interpolate(x0_hat, x_noise, column)
        with self.timed("teacher"):
            real = self.teacher.bind(self.model, prepared, scales).velocity(x_t, t)
        fake = self.model.velocity(x_t, t, prepared.contexts.full, prepared.grid, self.fake, scales)
        return predict_x0(x_t, real.float(), column), predict_x0(x_t, fake.float(), column)

    def draw_times(self, images: int, generator: torch.Generator, limits: tuple[float, float]) -> Tensor:
        """Uniform times in a range, then shifted as the sampler's: (B,)."""
        u = limits[0] + (limits[1] - limits[0]) * torch.rand(images, generator=generator)
        return shift_time(u, self.settings.shift).to(self.device)

    def renoising(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """The noisy end for interpolation: the trajectory's own x_T, or fresh noise in the ablation. (B, n, C)."""
        if self.dmdo.renoise == "ode":
            return states[0]
        return torch.randn(states.shape[1:], generator=generator).to(states)
