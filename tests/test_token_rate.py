"""The sums of TokenRate: of whole steps, over the parts of a run that is stopped and goes on."""

from types import SimpleNamespace

import pytest

from fastslm.callbacks.token_rate import TokenRate


@pytest.fixture
def trainer():
    return SimpleNamespace(global_rank=0, world_size=1, current_epoch=0, global_step=0, log_every_n_steps=100)


def train(callback, trainer, seconds, num_micro_batches=1):
    """Train on batches of so many seconds of audio."""
    for number, amount in enumerate(seconds):
        step = SimpleNamespace(place=number % num_micro_batches, num_micro_batches=num_micro_batches)
        batch = SimpleNamespace(step=step if num_micro_batches > 1 else None)
        numbers = dict.fromkeys(("speech_tokens", "llm_tokens", "llm_positions"), 1.0)
        callback.on_train_batch_start(trainer, None, batch, number)
        callback.on_train_batch_end(trainer, None, {"audio_seconds": amount, **numbers}, batch, number)


def begun(trainer):
    callback = TokenRate()
    callback.on_train_start(trainer, None)
    callback.on_train_epoch_start(trainer, None)
    return callback


def saved(callback, trainer):
    checkpoint = {}
    callback.on_save_checkpoint(trainer, None, checkpoint)
    return checkpoint["callbacks"]["TokenRate"]


def resumed(state, trainer):
    callback = TokenRate()
    callback.load_state_dict(state)
    callback.on_train_start(trainer, None)
    return callback


@pytest.mark.parametrize("begins", [True, False])
def test_an_epoch_that_goes_on_has_the_sums_of_all_its_parts(trainer, begins):
    callback = begun(trainer)
    train(callback, trainer, [1.0, 2.0])
    callback = resumed(saved(callback, trainer), trainer)
    if begins:  # Lightning says so where it had closed the epoch
        callback.on_train_epoch_start(trainer, None)
    train(callback, trainer, [4.0])
    state = saved(callback, trainer)
    assert state["epoch"]["audio_seconds"] == state["recent"]["audio_seconds"] == 7.0
    assert 0 < state["epoch"]["wait_seconds"] < state["epoch"]["wall_seconds"] < 5.0  # not since the machine started


def test_the_next_epoch_begins_anew(trainer):
    callback = begun(trainer)
    train(callback, trainer, [1.0, 2.0])
    callback = resumed(saved(callback, trainer), trainer)
    trainer.current_epoch = 1
    callback.on_train_epoch_start(trainer, None)
    train(callback, trainer, [4.0])
    assert saved(callback, trainer)["epoch"]["audio_seconds"] == 4.0


def test_only_whole_steps_are_kept_since_the_rest_of_one_is_done_anew(trainer):
    callback = begun(trainer)
    train(callback, trainer, [1.0, 2.0, 4.0], num_micro_batches=2)
    assert saved(callback, trainer)["epoch"]["audio_seconds"] == 3.0


def test_what_all_ranks_had_goes_on_at_the_first_alone(trainer):
    callback = begun(trainer)
    train(callback, trainer, [1.0])
    trainer.global_rank = 1
    assert saved(resumed(saved(callback, trainer), trainer), trainer)["epoch"]["audio_seconds"] == 0.0
