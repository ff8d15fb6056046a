"""A signal, or a kill, within a validation: the state before it is kept, and the run that goes on does it anew."""

import csv
import signal

import pytest

from fastslm.checkpoint import open_checkpoint
from fastslm.processes.signals import EXIT_STATUS

TWO_RANKS = ("--trainer.devices=2",)
AT_EPOCHS = ("--trainer.val_check_interval=1.0", "--trainer.check_val_every_n_epoch=1")
SAVES_AT_5 = ("--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.every_n_train_steps=5")
ACCUMULATES = ("--trainer.accumulate_grad_batches=2", "--trainer.max_steps=5")


def numbers(run):
    """Return every loss and score that a run has logged, by step and name, its files of before among them."""
    found = {}
    for file in [*sorted(run.glob("metrics.csv.before-*")), run / "metrics.csv"]:
        for row in csv.DictReader(file.read_text().splitlines()):
            found |= {
                (row["step"], name): value
                for name, value in row.items()
                if value and name.startswith(("train/loss", "val/")) and name != "val/seconds"
            }
    return found


def ended(step, number, rank=0, batch=0):
    return ("--trainer.callbacks+=killers.EndInValidation", f"--trainer.callbacks.step={step}",
            f"--trainer.callbacks.number={int(number)}", f"--trainer.callbacks.rank={rank}",
            f"--trainer.callbacks.batch={batch}")  # fmt: skip


CASES = {
    "first batch": ((), ended(5, signal.SIGTERM)),
    "second batch": ((), ended(5, signal.SIGUSR1, batch=1)),
    "the last validation": ((), ended(10, signal.SIGTERM)),
    "an epoch's": (AT_EPOCHS, ended(6, signal.SIGTERM)),
    "accumulation": (ACCUMULATES, ended(5, signal.SIGTERM, batch=1)),
    "the step was saved": (SAVES_AT_5, ended(5, signal.SIGTERM)),
    "killed after a save": (SAVES_AT_5, ended(5, signal.SIGKILL)),
    "first of two ranks": (TWO_RANKS, ended(5, signal.SIGTERM, rank=0)),
    "second of two ranks": (TWO_RANKS, ended(5, signal.SIGTERM, rank=1)),
    "the last on two ranks": (TWO_RANKS, ended(10, signal.SIGUSR1, rank=1, batch=1)),
}


WHOLE = {}  # numbers of runs that nobody ended, by their flags


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "end"), CASES.values(), ids=CASES)
def test_numbers_are_those_of_a_run_that_nobody_ended(fastslm, run_config, tmp_path, flags, end):
    step, number = (int(flag.partition("=")[2]) for flag in end[1:3])
    given = ("fit", "--config", str(run_config), "--data.eval_batch_samples=1", *flags)
    if flags not in WHOLE:
        fastslm(*given, "--run_folder", str(tmp_path / "whole"))
        WHOLE[flags] = numbers(tmp_path / "whole")
    expected = WHOLE[flags]
    assert any(name.startswith("val/") for at, name in expected)

    cut = (*given, "--run_folder", str(tmp_path / "cut"))
    first = fastslm(*cut, *end, check=False)
    if number == signal.SIGKILL:
        assert first.returncode == -number
    else:
        assert first.returncode == EXIT_STATUS, first.stderr
        assert f"stopped by a signal after step {step}" in first.stderr
        assert "Traceback" not in first.stderr
    assert open_checkpoint(tmp_path / "cut").manifest["step"] == step
    fastslm(*cut, "--ckpt_path", "last")
    assert numbers(tmp_path / "cut") == expected


@pytest.mark.slow
def test_a_validation_that_was_cut_twice_is_done_by_the_third_run(fastslm, run_config, tmp_path):
    fit = ("fit", "--config", str(run_config), "--data.eval_batch_samples=1")
    fastslm(*fit, "--run_folder", str(tmp_path / "whole"))
    cut = (*fit, "--run_folder", str(tmp_path / "cut"))
    assert fastslm(*cut, *ended(5, signal.SIGTERM), check=False).returncode == EXIT_STATUS
    again = fastslm(*cut, *ended(5, signal.SIGTERM, batch=1), "--ckpt_path", "last", check=False)
    assert again.returncode == EXIT_STATUS, again.stderr
    assert "Traceback" not in again.stderr
    fastslm(*cut, "--ckpt_path", "last")
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_in_the_step_before_a_validation_does_not_lose_it(fastslm, run_config, tmp_path):
    fit = ("fit", "--config", str(run_config))
    fastslm(*fit, "--run_folder", str(tmp_path / "whole"))
    cut = (*fit, "--run_folder", str(tmp_path / "cut"))
    flags = ("--trainer.callbacks+=killers.EndInStep", "--trainer.callbacks.step=4")
    assert fastslm(*cut, *flags, check=False).returncode == EXIT_STATUS
    assert open_checkpoint(tmp_path / "cut").manifest["step"] == 5
    fastslm(*cut, "--ckpt_path", "last")
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
