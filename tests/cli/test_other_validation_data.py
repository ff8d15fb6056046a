"""A run that goes on with other validation data: scores of two sets are not compared."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from fastslm.training import validation_data
from fastslm.training.command_line import TrainingCLI, command_line
from fastslm.training.validation_data import ValidationData


def with_scores():
    """Return callbacks that have seen a validation: the best by loss, the best by rate, and one that ends the run."""
    best, rate = ModelCheckpoint(monitor="val/loss"), ModelCheckpoint(monitor="rate/tokens", mode="max")
    for callback in (best, rate):
        callback.best_k_models = {"best": torch.tensor(2.0)}
        callback.best_model_path = callback.kth_best_model_path = "best"
        callback.best_model_score = callback.kth_value = torch.tensor(2.0)
    ends = EarlyStopping("val/wer", mode="max")
    ends.best_score, ends.wait_count = torch.tensor(0.5), 2
    return best, rate, ends


def go_on(monkeypatch, before, now):
    """Return the callbacks of a run that went on, and what is noted in its checkpoints."""
    monkeypatch.setattr(validation_data, "source_of", lambda trainer: SimpleNamespace(fingerprint=lambda split: now))
    noted, callbacks = ValidationData(), with_scores()
    if before is not None:
        noted.load_state_dict({"fingerprint": before})
    noted.on_train_start(SimpleNamespace(callbacks=callbacks, enable_validation=True, is_global_zero=True), None)
    return callbacks, noted.state_dict()


def test_what_was_best_on_other_validation_data_no_longer_counts(monkeypatch, capsys):
    (best, rate, ends), state = go_on(monkeypatch, "a", "b")
    assert state == {"fingerprint": "b"}
    assert best.check_monitor_top_k(
        SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=bool)), torch.tensor(9.0)
    )
    assert best.best_k_models == {"best": math.inf}  # the next one takes its place on the disk
    assert (ends.best_score, ends.wait_count) == (-math.inf, 0)
    assert rate.best_k_models == {"best": 2.0}  # it is no score of a validation
    assert "validation is on other data than before" in capsys.readouterr().err


@pytest.mark.parametrize("before", [None, "b"], ids=["unknown", "the same"])
def test_what_was_best_on_the_same_validation_data_counts(monkeypatch, capsys, before):
    (best, _, ends), state = go_on(monkeypatch, before, "b")
    assert state == {"fingerprint": "b"}
    assert best.best_model_score == 2.0
    assert (ends.best_score, ends.wait_count) == (0.5, 2)
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_the_best_of_a_run_is_of_the_validation_data_it_went_on_with(run_config, tmp_path, make_shards, capsys):
    def fit(steps, *flags):
        command_line(TrainingCLI, ["fit", "--config", str(run_config), "--trainer.max_steps", str(steps), *flags])
        return "on other data" in capsys.readouterr().err

    every = (
        "--trainer.val_check_interval",
        "1",
        "--model.optimizer.learning_rate",
        "0",
    )
    assert not fit(1, *every)
    shards = make_shards(tmp_path / "other", 3, seconds=[2.0], name="other")
    again = ("--ckpt_path", "last", *every)
    assert not fit(2, *again)
    assert [link.name for link in (tmp_path / "run" / "checkpoints").glob("best-*.ckpt")] == ["best-1.ckpt"]
    assert fit(3, *again, "--data.val_shards", shards)
    assert [link.name for link in (tmp_path / "run" / "checkpoints").glob("best-*.ckpt")] == ["best-3.ckpt"]
    assert not fit(4, *again, "--data.val_shards", shards)
    for shard in Path(shards).parent.glob("other-*.tar"):  # the same names, and other samples
        shutil.copy(next((tmp_path / "data").glob("val-*.tar")), shard)
    assert fit(5, *again, "--data.val_shards", shards)
