"""A stage of one's own: MeanFlow (arXiv 2505.13447), a student that jumps from noise to a picture in one evaluation."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hyperbagel.bagel.branch import DURATION, IMAGE_SCALE, TEXT_SCALE
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.flow.schedule import interpolate, shift_time
from hyperbagel.flow.trajectory import Velocity
from hyperbagel.losses.regression import Regression
from hyperbagel.training.distillation import DistillationSettings, DistillationStage
from hyperbagel.training.episode import Episode
from hyperbagel.training.networks import Training


@dataclass(frozen=True, kw_only=True)
class MeanFlowMethod:
    """Settings of MeanFlow."""

    same_time: float = 0.5
    """Share of images with s = t, for which the student learns the teacher's velocity at t itself."""
    scale: float = 1.0
    """Errors from which on a target counts little. A Cauchy loss has the gradient of the paper's adaptive weight
    (section 4.3, p = 1, c = scale²), here per token."""

    def __post_init__(self) -> None:
        if not 0 <= self.same_time < 1 or self.scale <= 0:
            raise ValueError(f"need 0 <= same_time < 1 and scale > 0, got {self}")


class MeanFlow(DistillationStage):
    """The student learns the average velocity of the guided teacher's ODE between t and s, for every s below t.

    Args:
        model: folder of the original model.
        init_from: branch file to start from; None starts from the original branch.
        method: settings of the method.
        student: how the student is trained.
        settings: what all distillation stages have in common.
    """

    conditions = (TEXT_SCALE, IMAGE_SCALE, DURATION)

    def __init__(
        self,
        *,
        model: str,
        init_from: str | None = None,
        method: MeanFlowMethod = MeanFlowMethod(),
        student: Training = Training(),
        settings: DistillationSettings = DistillationSettings(),
    ) -> None:
        super().__init__(model, init_from, student, settings)
        self.method = method
        self.add_loss(Regression("mean_flow", scale=method.scale))

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """One regression of the student's average velocity to what the MeanFlow identity asks for."""
        episode = self.begin(batch)
        t, s = self.draw_times(episode)
        x_t = interpolate(episode.x_0, episode.noise, t[:, None, None])
        with self.timed("teacher"):
            v = self.teacher.over(episode).velocity(x_t, t)
        student = episode.velocity(self.student)
        with self.timed("target"):
            target = average_velocity_target(student, v, x_t, t, s)
        with self.timed("student"):
            step = episode.step(x_t=x_t, t=t, velocity=student(x_t, t, s), target_velocity=target)
            self.update("student", self.total(step, "student"))

    def draw_times(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """Start t and end s <= t of each image's step, both (B,): two uniform draws, shifted as the sampler's times."""
        first, second = (shift_time(episode.uniform(), self.settings.shift) for _ in range(2))
        t, s = torch.maximum(first, second), torch.minimum(first, second)
        return t, torch.where(episode.uniform() < self.method.same_time, t, s)


@torch.no_grad()
def average_velocity_target(student: Velocity, v: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The MeanFlow identity (equation 6): u = v - (t - s) du/dt, with the student's own derivative du/dt, (B, n, C).

    The derivative follows the teacher's ODE, dx/dt = v, at a fixed end s: one Jacobian-vector product in forward mode,
    for which attention takes PyTorch's plain kernel. v, x_t: (B, n, C); t, s: (B,).
    """
    with sdpa_kernel(SDPBackend.MATH):
        slope = torch.func.jvp(lambda x, time: student(x, time, s), (x_t, t), (v.to(x_t), torch.ones_like(t)))[1]
    return v - (t - s)[:, None, None] * slope
