"""The plan of an epoch: nothing lost, nothing twice, as many steps on every rank."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastslm.datamodules._plan import BatchLimits, Costs, PlanSampler, pack, plan_epoch, plan_hash

LIMITS = BatchLimits(samples=4, windows=12, tokens=100)


def costs_of(*pairs):
    windows, tokens = zip(*pairs, strict=True) if pairs else ((), ())
    return Costs(np.array(windows, np.int64), np.array(tokens, np.int64))


def some(num, seed=0):
    rng = np.random.default_rng(seed)
    return costs_of(*zip(rng.integers(1, 8, num), rng.integers(5, 60, num), strict=True))


costs = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 150)), max_size=40).map(lambda rows: costs_of(*rows))
limits = st.builds(BatchLimits, st.integers(1, 6), st.integers(1, 25), st.integers(1, 200))
world_sizes = st.sampled_from([1, 2, 3, 7])


def counted(steps):
    return [index for step in steps for batch in step for index, counts in batch if counts]


# -- properties -------------------------------------------------------------------------------------


@given(costs, limits, world_sizes, st.booleans())
def test_every_sample_counts_once(costs, limits, world_size, shuffle):
    steps = plan_epoch(costs, limits, world_size, shuffle=shuffle)
    assert sorted(counted(steps)) == list(range(len(costs)))


@given(costs, limits, world_sizes, st.booleans())
def test_every_rank_has_a_batch_in_every_step(costs, limits, world_size, shuffle):
    for step in plan_epoch(costs, limits, world_size, shuffle=shuffle):
        assert len(step) == world_size
        assert all(step)


@given(costs, limits, world_sizes, st.booleans())
def test_repeated_samples_fill_one_step_at_most_and_alone(costs, limits, world_size, shuffle):
    steps = plan_epoch(costs, limits, world_size, shuffle=shuffle)
    fillers = [batch for step in steps for batch in step if not all(counts for _, counts in batch)]
    assert len(fillers) < world_size
    assert all(len(batch) == 1 for batch in fillers)
    if fillers:  # only where there are not enough samples to give every rank its own
        assert max(len(batch) for step in steps for batch in step) == 1


@given(costs, limits, world_sizes, st.booleans())
def test_a_batch_keeps_the_limits_or_is_a_single_sample(costs, limits, world_size, shuffle):
    for step in plan_epoch(costs, limits, world_size, shuffle=shuffle):
        for batch in step:
            members = [index for index, _ in batch]
            longest = costs.tokens[members].max()
            assert len(batch) == 1 or (
                len(batch) <= limits.samples
                and costs.windows[members].sum() <= limits.windows
                and longest * len(batch) <= limits.tokens
            )


@given(costs, limits, world_sizes, st.integers(0, 3), st.integers(0, 3))
def test_the_plan_follows_from_seed_and_epoch_alone(costs, limits, world_size, seed, epoch):
    plans = [plan_epoch(costs, limits, world_size, seed=seed, epoch=epoch) for _ in range(2)]
    assert plans[0] == plans[1]


@given(costs, limits, world_sizes, st.data())
def test_a_resumed_epoch_is_the_tail_of_the_whole_one(costs, limits, world_size, data):
    rank = data.draw(st.integers(0, world_size - 1))
    whole = list(PlanSampler(costs, limits, rank, world_size, seed=1, epoch=2))
    start = data.draw(st.integers(0, len(whole)))
    assert list(PlanSampler(costs, limits, rank, world_size, seed=1, epoch=2, start=start)) == whole[start:]


# -- examples ---------------------------------------------------------------------------------------


def test_packing_by_hand():
    costs = costs_of((1, 30), (1, 30), (1, 30), (1, 51), (13, 10), (6, 10), (6, 10), (1, 10))
    assert pack(range(8), costs, LIMITS) == [[0, 1, 2], [3], [4], [5, 6], [7]]


def test_another_epoch_and_another_seed_have_another_order():
    orders = {
        tuple(counted(plan_epoch(some(50), LIMITS, 2, seed=seed, epoch=epoch))) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_without_shuffling_every_epoch_is_the_same_and_begins_with_the_longest():
    first, second = (plan_epoch(some(50), LIMITS, 2, epoch=epoch, shuffle=False) for epoch in (0, 1))
    assert first == second
    tokens = some(50).tokens[counted(first)]
    assert tokens[0] == tokens.max()
    assert (np.diff(tokens) <= 0).all()


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_one_sample_reaches_every_rank_and_counts_on_one(world_size):
    assert plan_epoch(some(1), LIMITS, world_size) == [[[(0, True)], *[[(0, False)]] * (world_size - 1)]]


def test_no_sample_gives_no_step():
    assert plan_epoch(costs_of(), LIMITS, 3) == []


def test_samples_of_a_batch_are_of_like_length():
    rng = np.random.default_rng(0)
    costs = costs_of(*((1, int(n)) for n in rng.integers(10, 1000, 500)))
    steps = plan_epoch(costs, BatchLimits(8, 100, 10_000), 2)
    padded = sum(len(batch) * max(costs.tokens[i] for i, _ in batch) for step in steps for batch in step)
    assert costs.tokens.sum() / padded > 0.85


def test_batches_of_a_step_cost_about_the_same():
    rng = np.random.default_rng(0)
    costs = costs_of(*((1, int(n)) for n in rng.integers(10, 1000, 500)))
    steps = plan_epoch(costs, BatchLimits(8, 100, 2000), 4)
    sums = np.array([[sum(costs.tokens[i] for i, _ in batch) for batch in step] for step in steps])
    assert (sums.mean(1) / sums.max(1)).mean() > 0.85


def test_the_ranks_of_a_sampler_share_the_plan_out():
    plan = plan_epoch(some(23), LIMITS, 3, seed=4)
    ranks = [list(PlanSampler(some(23), LIMITS, rank, 3, seed=4)) for rank in range(3)]
    assert [list(step) for step in zip(*ranks, strict=True)] == plan


def test_a_sampler_goes_from_epoch_to_epoch():
    sampler = PlanSampler(some(40), LIMITS, 0, 1, start=3)
    sampler.set_epoch(0)  # Lightning names the epoch that a resumed run is in
    assert list(sampler) == list(PlanSampler(some(40), LIMITS, 0, 1))[3:]
    sampler.set_epoch(1)
    assert list(sampler) == list(PlanSampler(some(40), LIMITS, 0, 1, epoch=1))


def test_the_hash_changes_with_the_data_the_limits_and_the_seed():
    keys = [f"s{i}" for i in range(5)]
    hashes = [
        plan_hash(some(5), keys, LIMITS, 0),
        plan_hash(some(5, seed=1), keys, LIMITS, 0),
        plan_hash(some(5), [*keys[1:], "s0"], LIMITS, 0),
        plan_hash(some(5), keys, BatchLimits(4, 12, 99), 0),
        plan_hash(some(5), keys, LIMITS, 1),
    ]
    assert len(set(hashes)) == 5
    assert hashes[0] == plan_hash(some(5), keys, LIMITS, 0)


def test_a_loader_with_workers_goes_on_at_the_same_place_as_one_without():
    from torch.utils.data import DataLoader

    def planned(num_workers):
        sampler = PlanSampler(some(40), LIMITS, 0, 1, start=3)
        loader = DataLoader(_Echo(), sampler=sampler, batch_size=None, num_workers=num_workers)
        return [[tuple(sample) for sample in batch] for batch in loader]

    assert planned(2) == planned(0) == list(PlanSampler(some(40), LIMITS, 0, 1))[3:]


class _Echo:
    """A data set whose items are what was asked for."""

    def __getitem__(self, planned):
        return planned
