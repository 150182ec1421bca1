"""Stage 1: CFG distillation, the guided teacher in one pass."""

from __future__ import annotations

from dataclasses import dataclass

from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.flow.schedule import interpolate, shift_time
from hyperbagel.losses.regression import Regression
from hyperbagel.training.distillation import DistillationSettings, DistillationStage
from hyperbagel.training.networks import Training


@dataclass(frozen=True, kw_only=True)
class CFGDistillationMethod:
    """Settings of CFG distillation."""

    timestep_shift: float = 3.0
    """Timestep shift of the uniform training times; the paper found at least 3 necessary."""


class CFGDistillation(DistillationStage):
    """Stage 1: the guided teacher in one pass, with the guidance scales as conditions of the branch.

    Args:
        model: folder of the original model.
        init_from: branch file to go on from; None starts from the original branch.
        method: settings of the method.
        student: how the student is trained.
        settings: what all distillation stages have in common.

    Examples:
        >>> stage = CFGDistillation(model=folder)
        >>> stage.branch.conditions
        ('text_scale', 'image_scale')
    """

    def __init__(
        self,
        *,
        model: str,
        init_from: str | None = None,
        method: CFGDistillationMethod = CFGDistillationMethod(),
        student: Training = Training(),
        settings: DistillationSettings = DistillationSettings(),
    ) -> None:
        super().__init__(model, init_from, student, settings)
        self.method = method
        self.add_loss(Regression("cfg_distillation"))

    @property
    def nfe(self) -> int:
        """As many as the sampler takes steps."""
        return 0

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """One regression of the student's velocity to the teacher's guided one."""
        episode = self.begin(batch)
        t = shift_time(episode.uniform(), self.method.timestep_shift)
        with self.timed("encode"):
            x_t = interpolate(episode.x_0, episode.noise, t[:, None, None])
        with self.timed("teacher"):
            target = self.teacher.over(episode).velocity(x_t, t)
        with self.timed("student"):
            velocity = episode.velocity(self.student)(x_t, t)
            step = episode.step(x_t=x_t, t=t, velocity=velocity, target_velocity=target)
            self.update("student", self.total(step, "student"))
