"""LastCheckpoint by the clock: after a whole step, and on all ranks when the first one's clock says so."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from fastslm.callbacks.last_checkpoint import LastCheckpoint


class Clock:
    """Seconds that a test moves on."""

    now = 0.0


class Ranks:
    """The strategy of rank 0, or of another that gets what rank 0 said."""

    def __init__(self, answers=None):
        self.answers, self.asked = answers, []

    def broadcast(self, value):
        self.asked.append(value)
        return value if self.answers is None else self.answers.pop(0)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Return a runner: ``run(callback, strategy, minutes, num_micro_batches)`` gives the steps that were saved.

    ``minutes`` says how long each optimizer step takes, by the clock of this rank.
    """
    monkeypatch.setattr("fastslm.callbacks.last_checkpoint.time.monotonic", lambda: Clock.now)

    def steps(callback, strategy, minutes, num_micro_batches=1):
        saved = []
        trainer = SimpleNamespace(
            strategy=strategy, global_step=0, fast_dev_run=False, sanity_checking=False, loggers=[],
            is_global_zero=True, state=SimpleNamespace(fn=TrainerFn.FITTING), current_epoch=0, callback_metrics={},
            save_checkpoint=lambda path, weights_only: saved.append(trainer.global_step),
        )  # fmt: skip
        callback.dirpath = str(tmp_path)
        callback._should_remove_checkpoint = lambda *_: False
        module = SimpleNamespace(automatic_optimization=True)
        Clock.now = 0.0
        callback.on_train_start(trainer, module)
        for length in minutes:
            for place in range(num_micro_batches):
                Clock.now += 60 * length / num_micro_batches
                trainer.global_step += place == num_micro_batches - 1
                step = SimpleNamespace(place=place, num_micro_batches=num_micro_batches)
                batch = SimpleNamespace(step=step if num_micro_batches > 1 else None)
                callback.on_train_batch_end(trainer, module, None, batch, 0)
        return saved

    return steps


def test_a_save_by_the_clock_comes_after_the_step_in_which_it_falls_due(run):
    assert run(LastCheckpoint(1000, 10), Ranks(), [4.0] * 9) == [3, 6, 9]
    assert run(LastCheckpoint(1000, 10), Ranks(), [25.0] * 3) == [1, 2, 3]


def test_steps_and_clock_share_one_count_since_the_latest_save(run):
    assert run(LastCheckpoint(2, 10), Ranks(), [4.0] * 6) == [2, 4, 6]  # never ten minutes old
    assert run(LastCheckpoint(4, 10), Ranks(), [4.0] * 8) == [3, 4, 7, 8]


def test_without_minutes_nothing_is_asked_of_other_ranks(run):
    ranks = Ranks()
    assert run(LastCheckpoint(3), ranks, [60.0] * 7) == [3, 6]
    assert ranks.asked == []


def test_the_first_rank_decides_and_all_ask_equally_often(run):
    slow = Ranks()
    saved = run(LastCheckpoint(1000, 10), slow, [4.0] * 6)
    fast = Ranks(list(slow.asked))  # by its own clock no save would be due
    assert run(LastCheckpoint(1000, 10), fast, [1.0] * 6) == saved == [3, 6]
    assert len(fast.asked) == len(slow.asked)


def test_a_save_never_falls_within_a_step_of_many_micro_batches(run):
    ranks = Ranks()
    assert run(LastCheckpoint(1000, 10), ranks, [4.0, 8.0, 12.0], num_micro_batches=4) == [2, 3]
    assert len(ranks.asked) == 3
