"""The plan of an epoch: nothing lost, nothing twice, as many steps on every rank."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastslm.datamodules.plan import plan as _plan
from fastslm.datamodules.plan.plan import (
    BatchLimits,
    Costs,
    Mixture,
    data_hash,
    plan_hash,
    planned_in,
    shuffled,
)
from fastslm.datamodules.plan.sampler import PlanSampler

LIMITS = BatchLimits(samples=4, windows=12, tokens=100)


def costs_of(*pairs):
    windows, tokens = zip(*pairs, strict=True) if pairs else ((), ())
    return Costs(np.array(windows, np.int64), np.array(tokens, np.int64))


#: Of 10 numbers for the identity (0, 0), computed with Python's own integers.
ORDER = [6, 2, 3, 9, 5, 0, 1, 4, 7, 8]


def some(num, seed=0):
    rng = np.random.default_rng(seed)
    return costs_of(*zip(rng.integers(1, 8, num), rng.integers(5, 60, num), strict=True))


costs = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 150)), max_size=40).map(lambda rows: costs_of(*rows))
limits = st.builds(BatchLimits, st.integers(1, 6), st.integers(1, 25), st.integers(1, 200), st.booleans())
world_sizes = st.sampled_from([1, 2, 3, 7])


def plan_epoch(costs, limits, world_size, **settings):
    """Return the steps of an epoch, each with one batch for each rank."""
    plan = _plan.plan_epoch(costs, limits, world_size, **settings)
    return [plan.step(first, world_size) for first in range(0, plan.num_batches, world_size)]


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
            tokens = costs.tokens[members]
            positions = tokens.sum() if limits.packed else tokens.max() * len(batch)
            assert len(batch) == 1 or (
                len(batch) <= limits.samples
                and costs.windows[members].sum() <= limits.windows
                and positions <= limits.tokens
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
    resumed = PlanSampler(costs, limits, rank, world_size, seed=1, epoch=2, start=start * world_size)
    assert list(resumed) == whole[start:]


# -- examples ---------------------------------------------------------------------------------------


def test_packing_by_hand():
    # At most 4 samples, 12 windows, 100 tokens with padding; without shuffling the longest come first.
    costs = costs_of((1, 30), (1, 30), (1, 30), (1, 51), (13, 10), (6, 10), (6, 10), (1, 10))
    assert plan_epoch(costs, LIMITS, 1, shuffle=False) == [
        [[(3, True)]], [[(0, True), (1, True), (2, True)]], [[(4, True)]], [[(5, True), (6, True)]], [[(7, True)]],
    ]  # fmt: skip


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


def test_packed_batches_are_filled_where_padded_ones_pay_for_the_longest():
    costs = costs_of((1, 30), (1, 51), (1, 19))
    padded, packed = (plan_epoch(costs, BatchLimits(9, 99, 100, p), 1, shuffle=False) for p in (False, True))
    assert (len(padded), len(packed)) == (2, 1)


def test_a_sampler_goes_from_epoch_to_epoch():
    sampler = PlanSampler(some(40), LIMITS, 0, 1, start=3)
    sampler.set_epoch(0)  # Lightning names the epoch that a resumed run is in
    assert list(sampler) == list(PlanSampler(some(40), LIMITS, 0, 1))[3:]
    sampler.set_epoch(1)
    assert list(sampler) == list(PlanSampler(some(40), LIMITS, 0, 1, epoch=1))


def test_the_hash_changes_with_the_data_the_limits_and_the_seed():
    digests = ["a", "b"]
    hashes = [
        data_hash(some(5), digests, LIMITS, 0),
        data_hash(some(5, seed=1), digests, LIMITS, 0),
        data_hash(some(5), ["b", "a"], LIMITS, 0),
        data_hash(some(5), digests, BatchLimits(4, 12, 99), 0),
        data_hash(some(5), digests, replace(LIMITS, packed=True), 0),
        data_hash(some(5), digests, LIMITS, 1),
        data_hash(some(5), digests, LIMITS, 0, np.arange(3)),
    ]
    assert len(set(hashes)) == 7
    assert hashes[0] == data_hash(some(5), digests, LIMITS, 0)
    assert hashes[0] == "2f4702796fd45578"  # what checkpoints of padded batches hold


def test_the_hash_of_a_plan_tells_the_batches_of_a_step():
    hashes = {world_size: plan_hash("data", world_size) for world_size in (1, 2, 7, 512)}
    assert len(set(hashes.values())) == 4
    assert {n: planned_in("data", value) for n, value in hashes.items()} == {n: n for n in hashes}
    assert planned_in("other data", hashes[2]) is None


# -- another number of ranks --------------------------------------------------------------------------


@given(costs, limits, world_sizes, world_sizes, st.data())
def test_after_a_change_of_ranks_every_sample_left_comes_once(costs, limits, before, after, data):
    whole = _plan.plan_epoch(costs, limits, before)
    steps = data.draw(st.integers(0, whole.num_steps(before)))
    done = [i for step in plan_epoch(costs, limits, before)[:steps] for batch in step for i, counts in batch if counts]
    start = min(steps * before, whole.num_batches)
    ranks = [list(PlanSampler(costs, limits, rank, after, start=start, planned_for=before)) for rank in range(after)]
    assert len({len(batches) for batches in ranks}) == 1
    left = [i for batches in ranks for batch in batches for i, counts in batch if counts]
    assert sorted(done + left) == list(range(len(costs)))
    assert all(batch for batches in ranks for batch in batches)


# -- order and mixtures -------------------------------------------------------------------------------


def test_the_order_is_the_same_on_every_machine_and_version():
    assert shuffled(10, 0, 0).tolist() == ORDER
    assert sorted(shuffled(1000, 3, 5).tolist()) == list(range(1000))


def test_orders_have_no_pattern():
    places = np.array([np.argsort(shuffled(50, seed)) for seed in range(400)])
    assert abs(places.mean(0) - 24.5).max() < 3.5  # 400 draws from 0..49 have a standard error of 0.72
    assert abs(np.corrcoef(places[:-1, 0], places[1:, 0])[0, 1]) < 0.2


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.data())
def test_no_sample_of_a_source_comes_again_before_all_others(sizes, data):
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
    mixture = Mixture.of(sizes, weights)
    assert sum(mixture.counts) == sum(sizes)
    seen = np.zeros(sum(sizes), int)
    bounds = np.cumsum([0, *sizes])
    for epoch in range(5):
        chosen = mixture.samples(7, epoch)
        np.add.at(seen, chosen, 1)
        for begin, end, count in zip(bounds[:-1], bounds[1:], mixture.counts, strict=True):
            assert ((chosen >= begin) & (chosen < end)).sum() == count
            assert seen[begin:end].max() - seen[begin:end].min() <= 1


@pytest.mark.parametrize(
    ("weights", "temperature", "counts"),
    [
        (None, 1e-300, (0, 8)),  # the heaviest takes all
        (None, 5e-324, (0, 8)),
        ([2.0, 2.0], 1e-300, (4, 4)),
        (None, 1e300, (4, 4)),  # all weigh the same
        ([1e300, 1.0], 2.0, (8, 0)),
        ([1.5e308, 1.5e308], 1.0, (4, 4)),
        ([5e-324, 5e-324], 0.5, (4, 4)),
        ([1.0, 3.0], 1.0, (2, 6)),
        ([1.0, 9.0], 2.0, (2, 6)),
    ],
)
def test_an_epoch_is_full_however_extreme_weights_and_temperature_are(weights, temperature, counts):
    assert Mixture.of([3, 5], weights, temperature).counts == counts


def test_without_weights_an_epoch_is_every_sample_once():
    mixture = Mixture.of([3, 5])
    assert mixture.takes_each_once
    assert sorted(mixture.samples(0, 4).tolist()) == list(range(8))


@given(costs.filter(len), limits, world_sizes, st.integers(0, 3))
def test_a_plan_of_a_mixture_holds_what_the_mixture_gives(costs, limits, world_size, epoch):
    sizes = [len(costs) // 2, len(costs) - len(costs) // 2]
    mixture = Mixture.of(sizes, [1.0, 3.0])
    steps = plan_epoch(costs, limits, world_size, epoch=epoch, mixture=mixture)
    assert sorted(counted(steps)) == sorted(mixture.samples(0, epoch).tolist())


# -- size -------------------------------------------------------------------------------------------


def test_planning_a_million_rows_is_seconds_of_processor_time():
    rng = np.random.default_rng(0)
    costs = Costs(rng.integers(1, 60, 1_000_000), rng.integers(40, 3000, 1_000_000))
    begin = time.process_time()
    plan = _plan.plan_epoch(costs, BatchLimits(16, 256, 16384), 8)
    assert time.process_time() - begin < 6
    assert (np.sort(plan.samples) == np.arange(1_000_000)).all()


def test_resuming_late_costs_no_more_than_resuming_early():
    costs = some(200_000)
    times = []
    for share in (0.0, 0.99):
        start = int(_plan.plan_epoch(costs, LIMITS, 2).num_batches * share)
        begin = time.process_time()
        next(iter(PlanSampler(costs, LIMITS, 0, 2, start=start)))
        times.append(time.process_time() - begin)
    assert times[1] < 3 * times[0] + 0.5


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
