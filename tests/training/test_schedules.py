"""The learning-rate schedule: its shape, and that the configuration, not the checkpoint, says what it is."""

import pytest
import torch
from torch import nn

from hyperbagel.training.schedules import WarmupStableDecay


def optimizer(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr)


def rates(schedule: WarmupStableDecay, steps: int) -> list[float]:
    result = []
    for _ in range(steps):
        result.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return result


def test_it_warms_up_holds_and_decays():
    schedule = WarmupStableDecay(optimizer(), warmup=1, total=6, decay=2, final=0.1)
    assert rates(schedule, 8) == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, 0.55, 0.1, 0.1])


def test_a_cosine_may_fill_the_run():
    schedule = WarmupStableDecay(optimizer(2.0), total=4, decay=4, shape="cosine")
    assert rates(schedule, 5) == pytest.approx([2.0, 1.7071, 1.0, 0.2929, 0.0], abs=1e-4)


def test_without_a_total_it_holds():
    assert rates(WarmupStableDecay(optimizer(), warmup=2), 4) == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_a_resumed_run_follows_the_schedule_that_is_configured_now():
    first = WarmupStableDecay(optimizer(1.0), total=4, decay=4)
    rates(first, 2)
    resumed = WarmupStableDecay(optimizer(10.0), total=8, decay=4)
    resumed.load_state_dict(first.state_dict())
    assert rates(resumed, 5)[1:] == pytest.approx([10.0, 10.0, 7.5, 5.0])


@pytest.mark.parametrize(
    ("wrong", "told"), [({"warmup": -1}, "not be negative"), ({"warmup": 3, "decay": 3, "total": 5}, "must fit into")]
)
def test_lengths_must_fit(wrong: dict[str, int], told: str):
    with pytest.raises(ValueError, match=told):
        WarmupStableDecay(optimizer(), **wrong)


def test_the_end_may_be_told_later():
    """As by a stage, whose student's schedule ends with its updates; one with a total of its own keeps it."""
    late, own = WarmupStableDecay(optimizer(), decay=2), WarmupStableDecay(optimizer(), decay=2, total=3)
    for schedule in (late, own):
        schedule.end_at(4)
    assert rates(late, 5) == pytest.approx([1, 1, 1, 0.5, 0])
    assert rates(own, 4) == pytest.approx([1, 1, 0.5, 0])


def test_a_shortened_run_has_a_shorter_warmup_and_decay():
    """Also the first rate is that of the shorter warmup."""
    schedule = WarmupStableDecay(optimizer(), warmup=4, decay=4)
    schedule.end_at(2)
    assert rates(schedule, 3) == pytest.approx([0.5, 1, 0])


def test_a_decay_without_an_end_is_refused():
    with pytest.raises(ValueError, match="needs `total`, or a stage with `max_updates`"):
        rates(WarmupStableDecay(optimizer(), decay=2), 2)
