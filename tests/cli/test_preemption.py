"""Signals to a whole process group, as clusters, ``timeout``, service managers and containers send them."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastslm.checkpoint import open_checkpoint
from fastslm.cli import main
from fastslm.processes.signals import EXIT_STATUS

HERE = os.path.dirname(__file__)
TWO_RANKS = ["--trainer.devices", "2"]


@pytest.fixture
def group(tmp_path):
    """Return a starter of ``fastslm`` in a process group of its own, whose output goes to ``log``."""
    started = []

    def start(*arguments):
        environment = {**os.environ, "PYTHONPATH": HERE, "OMP_NUM_THREADS": "1"}
        with open(tmp_path / "log", "w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fastslm", *map(str, arguments)], env=environment, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        for member in members(process.pid):
            os.kill(member, signal.SIGKILL)
        process.wait()


def members(group):
    """Return the processes of a group that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        if fields[0] != "Z" and int(fields[2]) == group:
            found.append(int(entry.name))
    return found


def gone(process, seconds=20):
    """Wait until nothing of a group runs, and say whether it is so."""
    deadline = time.monotonic() + seconds
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not members(process.pid)


def wait_until(process, ready, seconds=300):
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def training(group, run_config, tmp_path):
    """Return a starter of a run without an end, with workers, that gives the process once it trains."""

    def start(workers, *flags, pause=0.2):
        steps = ["--trainer.max_steps", "5000", "--trainer.val_check_interval", "5000"]
        mark = ["--trainer.callbacks+=killers.SlowSteps", f"--trainer.callbacks.seconds={pause}",
                f"--trainer.callbacks.mark={tmp_path / 'trains'}"]  # fmt: skip
        data = [f"--data.num_workers={workers}"]
        process = group("fit", "--config", run_config, *steps, *data, *flags, *mark)
        wait_until(process, (tmp_path / "trains").exists)
        return process

    return start


def log(tmp_path):
    return (tmp_path / "log").read_text()


CASES = [
    (1, [], signal.SIGTERM),
    (0, [], signal.SIGTERM),
    (2, [], signal.SIGUSR1),
    (1, TWO_RANKS, signal.SIGTERM),
    (2, [], signal.SIGHUP),
    (2, [], signal.SIGINT),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "flags", "number"),
    CASES,
    ids=["1", "0", "2-usr1", "1-on-two-ranks", "2-hup", "2-int"],
)
def test_a_signal_to_the_group_saves_and_ends_with_its_status(training, tmp_path, workers, flags, number):
    process = training(workers, *flags)
    os.killpg(process.pid, number)
    assert process.wait(120) == (130 if number == signal.SIGINT else EXIT_STATUS), log(tmp_path)
    saved = open_checkpoint(tmp_path / "run").manifest["step"]
    assert f"stopped by a signal after step {saved}" in log(tmp_path)
    assert "Traceback" not in log(tmp_path)
    assert "killed by signal" not in log(tmp_path)
    assert gone(process)


@pytest.mark.parametrize("late", ["false", "true"])
@pytest.mark.slow
def test_the_step_that_a_signal_comes_in_is_the_last_and_in_metrics_csv(run_config, tmp_path, late):
    asked = ["--trainer.callbacks+=tests.cli.killers.EndInStep", "--trainer.callbacks.step=2",
             f"--trainer.callbacks.late={late}"]  # fmt: skip
    assert main(["fit", "--config", str(run_config), *asked]) == EXIT_STATUS
    assert open_checkpoint(tmp_path / "run").manifest["step"] == 3
    with open(tmp_path / "run" / "metrics.csv") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == ["0", "1", "2"]


@pytest.mark.slow
def test_a_launcher_that_sends_the_signal_twice_still_gets_a_save(training, tmp_path):
    process = training(1)
    process.send_signal(signal.SIGTERM)  # as timeout does: to the child, and to the group
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(120) == EXIT_STATUS, log(tmp_path)
    assert open_checkpoint(tmp_path / "run").manifest["step"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_signal_ends_the_run_at_once(training, tmp_path, workers):
    process = training(workers, pause=600.0)
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(2.0)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    assert gone(process)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_run_however_it_ends(training, tmp_path, number):
    process = training(2)
    assert len(members(process.pid)) >= 3
    if number == signal.SIGKILL:
        process.kill()  # it alone
    else:
        os.killpg(process.pid, number)
    process.wait(60)
    assert gone(process)
    assert "Traceback" not in log(tmp_path)


@pytest.mark.slow
def test_a_killed_rank_is_told_in_one_sentence_by_the_other(training, tmp_path):
    process = training(0, *TWO_RANKS)
    environments = {
        member: Path(f"/proc/{member}/environ").read_bytes().split(b"\0") for member in members(process.pid)
    }
    (second,) = (member for member, values in environments.items() if b"LOCAL_RANK=1" in values)
    os.kill(second, signal.SIGKILL)
    assert process.wait(120) != 0
    assert "fastslm: error: another process of this run has ended" in log(tmp_path)
    assert "Traceback" not in log(tmp_path)
    assert gone(process)


@pytest.mark.slow
def test_a_signal_before_the_first_step_ends_with_143(group, run_config, tmp_path):
    process = group("fit", "--config", run_config, "--data.num_workers=1")
    wait_until(process, lambda: loaded(process))
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == EXIT_STATUS, log(tmp_path)
    assert "ended by SIGTERM" in log(tmp_path)
    assert gone(process)


def loaded(process):
    """Whether torch is there, so that the command has begun."""
    return "libtorch_cpu" in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "number"),
    [("validate", signal.SIGTERM), ("predict", signal.SIGTERM), ("validate", signal.SIGINT)],
    ids=["validate", "predict", "validate-int"],
)
def test_an_evaluation_with_workers_ends_on_a_signal(group, fastslm, run_config, tmp_path, command, number):
    short = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]
    fastslm("fit", "--config", str(run_config), *short)
    mark = ["--trainer.callbacks+=killers.SlowSteps", "--trainer.callbacks.seconds=0.5",
            f"--trainer.callbacks.mark={tmp_path / 'trains'}"]  # fmt: skip
    process = group(command, "--config", run_config, "--data.num_workers=1", *mark)
    wait_until(process, (tmp_path / "trains").exists)
    os.killpg(process.pid, number)
    assert process.wait(30) == (130 if number == signal.SIGINT else EXIT_STATUS), log(tmp_path)
    assert "Traceback" not in log(tmp_path)
    assert "killed by signal" not in log(tmp_path)
    assert gone(process)
