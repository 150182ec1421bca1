"""The order of batches: every sample once a turn, ranks in step, sizes together."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbagel.datamodules.batch_order import BatchOrder, OrderedSource, OrderSettings


def sources(sizes: list[int], batch_size: int) -> list[OrderedSource]:
    return [OrderedSource(np.random.default_rng(n).permutation(n), batch_size) for n in sizes]


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    batch_size=st.integers(2, 9),
    world=st.integers(1, 5),
    window=st.integers(1, 8),
    seed=st.none() | st.integers(0, 100),
    epoch=st.integers(0, 3),
)
def test_each_epoch_has_every_sample_once(sizes, batch_size, world, window, seed, epoch):
    settings = OrderSettings(world, seed, window)
    ranks = [BatchOrder(sources(sizes, batch_size), settings, rank) for rank in range(world)]
    length = len(ranks[0])
    counts: Counter = Counter()
    for number in range(epoch * length, (epoch + 1) * length):
        step = [plan[number] for plan in ranks]
        assert len({batch.source for batch in step}) == 1
        assert all(1 <= len(batch.samples) <= batch_size for batch in step)
        counts.update((batch.source, sample) for batch in step for sample in batch.samples)
    assert set(counts) == {(source, sample) for source, size in enumerate(sizes) for sample in range(size)}
    # Fewer samples than ranks is the one case in which some have to come twice.
    assert all(counts[source, sample] == 1 or sizes[source] < world for source, sample in counts)


@given(numbers=st.lists(st.integers(0, 300), min_size=1, max_size=8), rank=st.integers(0, 1))
def test_a_batch_depends_on_its_number_only(numbers, rank):
    settings = OrderSettings(world=2, seed=3, window=4, batches_per_epoch=17)
    walked = BatchOrder(sources([50, 20], 3), settings, rank)
    for number in numbers:
        assert walked[number] == BatchOrder(sources([50, 20], 3), settings, rank)[number]


def test_batches_hold_samples_of_like_size():
    order = np.random.default_rng(0).permutation(1000)
    plan = BatchOrder([OrderedSource(order, 5)], OrderSettings(world=2, window=100))
    spread = [np.ptp(order[list(plan[number].samples)]) for number in range(len(plan))]
    assert np.mean(spread) < 10
    firsts = [order[plan[number].samples[0]] for number in range(len(plan))]
    assert abs(np.corrcoef(firsts, range(len(firsts)))[0, 1]) < 0.3  # yet they come in random order


def test_ranks_take_turns_with_the_long_samples():
    plans = [BatchOrder([OrderedSource(np.arange(400), 5)], OrderSettings(world=2), rank) for rank in range(2)]
    longer = [np.mean(plans[0][number].samples) > np.mean(plans[1][number].samples) for number in range(40)]
    assert sum(longer) == 20


def test_weights_may_be_any_scale():
    planned = [OrderedSource(np.arange(100), 10, weight) for weight in (30.0, 10.0)]
    plan = BatchOrder(planned, OrderSettings(batches_per_epoch=7))
    assert Counter(plan[number].source for number in range(7)) == {0: 5, 1: 2}
    # Where an epoch ends within a turn, the next goes on with it.
    seen = [sample for number in range(14) if plan[number].source == 0 for sample in plan[number].samples]
    assert len(seen) == len(set(seen)) == 100


def test_impossible_settings():
    with pytest.raises(ValueError, match="rank 2"):
        BatchOrder(sources([5], 2), OrderSettings(world=2), rank=2)
    with pytest.raises(ValueError, match="above 0"):
        BatchOrder([OrderedSource(np.arange(5), 2, 0.0)], OrderSettings())
