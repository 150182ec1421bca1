"""Stage 1: what it compares, at which times, and that it learns it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyperbagel.flow.schedule import shift_time
from hyperbagel.flow.trajectory import Velocity
from hyperbagel.modules.consistency.cfg_distillation import CFGDistillation, CFGDistillationMethod
from tests.distillation import Logged, adam, batches, episode_of, fit, sgd, steps_of


def test_student_approaches_the_guided_teacher(nano_folder: str, tmp_path: Path) -> None:
    """The loss of fixed batches falls, and the learnt scales matter."""
    stage = CFGDistillation(model=nano_folder, student=adam(3e-3))
    logged = Logged("loss/cfg_distillation")
    fit(stage, batches(2) * 45, tmp_path, callbacks=[logged])
    assert len(logged.values) == 90
    assert sum(logged.values[-20:]) < 0.6 * sum(logged.values[:20])

    def velocity(scale: float) -> Velocity:
        scales = torch.full((2,), scale), torch.ones(2)
        return episode_of(stage.model, batches(1)[0], scales=scales).velocity(stage.student)

    x_t, t = torch.randn(2, 4, stage.model.config.latent_token_dim), torch.full((2,), 0.8)
    one, other = (velocity(scale)(x_t, t) for scale in (1.0, 5.0))
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_training_times_follow_the_shift(shift: float, nano_folder: str, tmp_path: Path) -> None:
    """Of the same uniform draws."""
    method = CFGDistillationMethod(timestep_shift=shift)
    steps = steps_of(CFGDistillation(model=nano_folder, method=method, student=sgd(0.0)), batches(2), tmp_path)
    again = CFGDistillation(model=nano_folder)
    expected = [shift_time(again.begin(batch).uniform(), shift) for batch in batches(2)]
    torch.testing.assert_close([step.t for step in steps], expected)
