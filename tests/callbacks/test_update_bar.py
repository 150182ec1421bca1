"""The progress bar: how often it looks at losses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hyperbagel.callbacks.update_bar import UpdateBar


@pytest.mark.parametrize(("device", "looks"), [("cpu", 6), ("meta", 2)])
def test_losses_on_a_gpu_are_looked_at_as_often_as_they_are_logged(device: str, looks: int) -> None:
    shown: list[dict[str, str]] = []
    shows = SimpleNamespace(disable=False, n=0, total=None, set_postfix=lambda losses, refresh: shown.append(losses))
    shows.update = lambda by: setattr(shows, "n", shows.n + by)
    bar = UpdateBar()
    bar._train_progress_bar = shows  # type: ignore[assignment]
    trainer: Any = SimpleNamespace(log_every_n_steps=3, callback_metrics={"loss/image": torch.tensor(0.25)})
    for index in range(6):
        stage: Any = SimpleNamespace(device=torch.device(device), student_step=index + 1)
        bar.on_train_batch_end(trainer, stage, None, None, index)
    assert shown == [{"image": "0.25"}] * looks and shows.n == 6
