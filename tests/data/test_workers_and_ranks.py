"""An epoch shared by ranks and loaded by workers: every sample once, the same batches, the same place after a stop."""

import itertools
from collections import Counter

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose

NUM = 23  # a prime, so that neither batches nor ranks divide it
KEYS = [f"train-{i:03d}" for i in range(NUM)]


@pytest.fixture
def pattern(tmp_path, make_shards):
    return make_shards(tmp_path / "shards", NUM, [0.2, 0.5, 0.9, 2.5], per_shard=5)


def batches_of(loader):
    return [(batch.keys, batch.weights, int(batch.audio.sum()), batch.num_samples) for batch in loader]


@pytest.mark.parametrize(
    ("world_size", "num_workers"),
    [*itertools.product([1, 2, 3], [0, 1, 4]), (7, 0), *(pytest.param(7, n, marks=pytest.mark.slow) for n in (1, 4))],
)
def test_every_sample_comes_once_in_training_and_in_validation(pattern, data_of, keys_of, world_size, num_workers):
    found = {"train": [], "val": []}
    num_steps = {"train": set(), "val": set()}
    for rank in range(world_size):
        data = data_of(
            train_shards=pattern, val_shards=pattern, batch_samples=3, eval_batch_samples=3, seed=3,
            rank=rank, world_size=world_size, num_workers=num_workers,
        )  # fmt: skip
        data.setup("fit")
        for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
            batches = list(loader)
            assert len(batches) == len(loader)
            assert not any(batch.broken for batch in batches)
            num_steps[split].add(len(batches))
            found[split] += keys_of(batches)
    assert Counter(found["train"]) == Counter(KEYS)
    assert Counter(found["val"]) == Counter(KEYS)
    assert all(len(steps) == 1 for steps in num_steps.values()), "ranks differ in their number of steps"


@pytest.mark.parametrize("world_size", [1, 2])
def test_workers_change_neither_batches_nor_their_order(pattern, data_of, world_size):
    for rank in range(world_size):
        settings = {"train_shards": pattern, "val_shards": pattern, "batch_samples": 2, "seed": 3}
        epochs = []
        for num_workers in (0, 1, 4):
            data = data_of(rank=rank, world_size=world_size, num_workers=num_workers, **settings)
            data.setup("fit")
            epochs.append(batches_of(data.train_dataloader()))
        assert epochs[0] == epochs[1] == epochs[2]


@pytest.mark.parametrize("num_workers", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_stopped_at_any_step_goes_on_with_what_was_left(pattern, data_of, num_workers):
    settings = {"train_shards": pattern, "val_shards": pattern, "batch_samples": 2, "seed": 3}
    data = data_of(num_workers=4, **settings)
    data.setup("fit")
    whole = batches_of(data.train_dataloader())
    assert len(whole) >= 12
    for steps in range(1, len(whole)):
        data.trainer.fit_loop.epoch_loop.batch_progress.current.ready = steps
        again = data_of(num_workers=num_workers, steps_done=steps, **settings)
        again.load_state_dict(data.state_dict())
        again.setup("fit")
        assert batches_of(again.train_dataloader()) == whole[steps:], f"stopped after {steps} steps"


@pytest.mark.parametrize(("first_world", "second_world"), [(2, 3), pytest.param(7, 2, marks=pytest.mark.slow)])
def test_with_other_ranks_and_workers_what_was_left_comes_once(pattern, data_of, keys_of, first_world, second_world):
    settings = {"train_shards": pattern, "val_shards": pattern, "batch_samples": 2, "seed": 3}
    seen = []
    for rank in range(first_world):
        data = data_of(rank=rank, world_size=first_world, num_workers=1, **settings)
        data.setup("fit")
        seen += keys_of(list(data.train_dataloader())[:1])
        data.trainer.fit_loop.epoch_loop.batch_progress.current.ready = 1
        state = data.state_dict()
    for rank in range(second_world):
        data = data_of(rank=rank, world_size=second_world, num_workers=4, steps_done=1, **settings)
        data.load_state_dict(state)
        data.setup("fit")
        seen += keys_of(data.train_dataloader())
    assert Counter(seen) == Counter(KEYS)
