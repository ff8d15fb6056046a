"""A run's folder: one training at a time, and an earlier run is moved aside only for one that begins."""

import errno
import json
import os
import shutil
import threading

import pytest
import yaml
from filelock import FileLock
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from fastslm import cli
from fastslm.errors import CheckpointError, ConfigError, DataError, TrainingError
from fastslm.training import run_folder
from fastslm.training.command_line import TrainingCLI, _log_settings, command_line
from fastslm.training.full_disk import full_disk

ONE_STEP = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]


@pytest.fixture
def fit(run_config):
    def run(*flags):
        command_line(TrainingCLI, ["fit", "--config", str(run_config), *map(str, flags)])

    return run


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_run_that_cannot_begin_leaves_the_earlier_one_in_its_place(fit, tmp_path, capsys):
    fit(*ONE_STEP)
    run, before = tmp_path / "run", files(tmp_path / "run")
    with pytest.raises(DataError, match="no file matches"):
        fit("--data.train_shards", "none-*.tar")
    assert f"Nothing was trained: the earlier run is in {run} again." in capsys.readouterr().err
    assert files(run) == before
    assert not (tmp_path / "run.1").exists()
    with pytest.raises(DataError, match="no file matches"):
        fit("--data.train_shards", "none-*.tar", "--ckpt_path", "last")
    assert files(run) == before
    fit(*ONE_STEP)
    assert files(tmp_path / "run.1") == before


@pytest.mark.slow
def test_a_run_that_has_nothing_left_to_do_says_so_and_where_its_checkpoint_is(fit, tmp_path, capsys):
    fit(*ONE_STEP)
    capsys.readouterr()
    fit(*ONE_STEP, "--ckpt_path", tmp_path / "run" / "checkpoints" / "last.ckpt")
    said = capsys.readouterr().out
    assert f"checkpoint  {tmp_path / 'run' / 'checkpoints'}" in said
    assert "nothing was left to do at step 1: raise trainer.max_steps" in said
    assert "were not validated" not in said


@pytest.mark.parametrize(
    "rank", ["RANK", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SLURM_PROCID", "NODE_RANK"))]
)
def test_the_rank_of_another_run_in_the_environment_costs_no_earlier_run(fit, tmp_path, monkeypatch, rank):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    monkeypatch.setenv(rank, "1")
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as Lightning reads it when it is imported
    fit(*ONE_STEP)
    assert (tmp_path / "run.1" / "checkpoints").is_dir()
    assert (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.slow
def test_fast_dev_run_leaves_the_run_folder_alone(fit, tmp_path, capsys):
    trying = ("--trainer.fast_dev_run", "true")
    fit(*trying)
    assert not (tmp_path / "run").exists()
    shown = capsys.readouterr()
    assert f"nothing is kept, and {tmp_path / 'run'} stays as it is" in shown.err
    assert "fastslm transcribe" not in shown.out  # of a folder that has gone
    fit(*ONE_STEP)
    before = files(tmp_path / "run")
    fit(*trying)
    fit(*trying, "--ckpt_path", "last")
    assert files(tmp_path / "run") == before
    assert not (tmp_path / "run.1").exists()


def test_a_run_behind_a_link_is_moved_aside_where_it_lies(tmp_path):
    (tmp_path / "disk" / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    folder = run_folder.RunFolder(tmp_path / "run", waits=False)
    folder.make_room(resuming=False)
    assert (tmp_path / "disk" / "run.1" / "checkpoints").is_dir()
    assert (tmp_path / "run").is_symlink()
    assert not (tmp_path / "run" / "checkpoints").exists()
    folder.end(has_trained=False)
    assert (tmp_path / "run" / "checkpoints").is_dir()
    assert not (tmp_path / "disk" / "run.1").exists()


@pytest.fixture
def their_metrics(tmp_path):
    """Return flags of a CSVLogger of the user's with a place of its own, and what an earlier run has left there."""
    place = tmp_path / "logs" / "mine" / "v1"
    place.mkdir(parents=True)
    (place / "metrics.csv").write_text("step,train/loss\n1,2.5\n")
    arguments = {"save_dir": tmp_path / "logs", "name": "mine", "version": "v1"}
    return place, ["--trainer.logger", "CSVLogger", *(f"--trainer.logger.{n}={v}" for n, v in arguments.items())]


@pytest.mark.slow
def test_the_metrics_that_a_logger_of_the_users_would_delete_are_moved_aside(fit, their_metrics, tmp_path, capsys):
    place, flags = their_metrics
    fit(*ONE_STEP, *flags)
    assert "--logdir" not in capsys.readouterr().out
    assert (place / "metrics.csv.before-1").read_text() == "step,train/loss\n1,2.5\n"
    first = (place / "metrics.csv").read_text()
    assert "val/loss" in first
    for name in ("metrics.csv", "config.yaml", "training.png"):  # a user's logger takes the place of TensorBoard alone
        assert (tmp_path / "run" / name).exists(), name
    evaluated = ["validate", "--config", str(tmp_path / "run" / "config.yaml")]
    command_line(TrainingCLI, evaluated)
    assert (place / "metrics.csv.before-2").read_text() == first


def test_the_configuration_of_a_run_lies_in_its_folder_and_in_what_other_loggers_write(fit, tmp_path, capsys):
    loggers = [
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "logs")}},
        {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "run"), "name": "", "version": ""}},
    ]
    fit(*ONE_STEP, "--trainer.logger", json.dumps(loggers))
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert not list(tmp_path.glob("logs/**/config.yaml"))
    assert [yaml.safe_load(file.read_text()) for file in tmp_path.glob("**/hparams.yaml")] == [config]
    assert f"(tensorboard --logdir {tmp_path / 'logs'})" in capsys.readouterr().out


def test_a_logger_that_refuses_the_settings_of_a_run_does_not_end_it(tmp_path, capsys):
    class Fixed(CSVLogger):
        def log_hyperparams(self, params):
            raise ValueError("Changing values is not allowed.\nSee ...")

    _log_settings(Fixed(str(tmp_path / "logs")), {"seed_everything": 0}, tmp_path / "run")
    assert capsys.readouterr().err == (
        "fastslm: trainer.logger: Fixed did not take the settings of this run: Changing values is not allowed.\n"
    )


def test_metrics_are_put_back_where_nothing_was_trained(tmp_path):
    metrics = [tmp_path / "logs" / "metrics.csv", tmp_path / "run" / "metrics.csv"]
    for path in metrics:
        path.parent.mkdir()
        path.write_text(str(path))
    folder = run_folder.RunFolder(tmp_path / "run", waits=False)
    folder.make_room(resuming=True, metrics=metrics)
    assert not any(path.exists() for path in metrics)
    folder.end(has_trained=False)
    assert [path.read_text() for path in metrics] == list(map(str, metrics))


def test_metrics_are_put_back_where_a_run_that_had_nothing_left_to_do_wrote_none(tmp_path):
    metrics = tmp_path / "run" / "metrics.csv"
    metrics.parent.mkdir()
    for wrote in (None, "its own"):
        metrics.write_text("earlier")
        folder = run_folder.RunFolder(tmp_path / "run", waits=False)
        folder.make_room(resuming=True, metrics=[metrics])
        if wrote:
            metrics.write_text(wrote)
        folder.end(has_trained=True)  # at step 3, all of them of the run before
        assert metrics.read_text() == (wrote or "earlier")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"No space left on device\..*run, which takes .* has [\d,.]+ MiB free\. Free space there, then"),
        (errno.EFBIG, r"File too large\..*ulimit -f\), then"),
    ],
)
def test_a_disk_that_is_full_is_named_with_the_checkpoint_to_go_on_from(fit, tmp_path, monkeypatch, number, words):
    """Whatever takes no more of it: Python names no file of which only a part was written."""
    fit(*ONE_STEP)

    def save(writer):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(ExperimentWriter, "save", save)
    more = ("--trainer.max_steps", "2", "--ckpt_path", "last")
    with pytest.raises(TrainingError, match=rf"{words} --ckpt_path last goes on from .*step-000001\."):
        fit(*more)


def test_an_evaluation_is_refused_a_folder_that_it_cannot_write_to(run_config, tmp_path):
    """Before anything is loaded; a folder that is not there yet is looked at by the one around it."""
    theirs, checkpoint = "/proc/theirs/run", tmp_path / "x.ckpt"  # root may write anywhere else
    checkpoint.touch()
    flags = ["--config", str(run_config), "--run_folder", theirs, "--ckpt_path", str(checkpoint)]
    with pytest.raises(ConfigError, match=rf"{theirs} .* cannot be written to.*NEW --ckpt_path {checkpoint}\."):
        command_line(TrainingCLI, ["validate", *flags])


def test_a_full_disk_before_the_first_checkpoint_says_that_there_is_none(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device")
    assert full_disk(error, tmp_path).endswith("Free space there, and begin anew: there is no whole checkpoint.")
    assert full_disk(OSError(errno.ENOSPC, "No space left on device", "a.txt"), tmp_path) is None  # of another folder
    error.filename = str(tmp_path / "metrics.csv")
    assert "metrics, logs and predictions" in full_disk(error, tmp_path)
    assert full_disk(OSError(errno.ENOENT, "No such file"), tmp_path) is None


def test_a_thread_that_a_full_disk_ends_is_a_line_and_no_traceback(capsys, monkeypatch):
    def write():
        raise OSError(errno.ENOSPC, "No space left on device")

    def command(arguments):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        return 0

    monkeypatch.setattr(cli, "_run", command)
    assert cli.main([]) == 0
    assert capsys.readouterr().err == "fastslm: a thread that writes has ended: No space left on device.\n"


def test_a_folder_of_other_things_is_not_taken_for_a_run(fit, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    (mine / "shards").mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=r"mine holds shards and no run. A run needs a folder of its own, such as .*mine/run"
    ):
        fit(*ONE_STEP, "--run_folder", mine)
    assert (mine / "shards").is_dir()
    with pytest.raises(ConfigError, match="run_folder: it is empty"):
        fit("--run_folder", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="run_folder: s3://bucket/x is an address"):
        fit("--run_folder", "s3://bucket/x")
    for folder in ("$HOME/x", "runs/$IS_NOT_SET"):
        with pytest.raises(ConfigError, match=r"run_folder: .*\$.* names a variable"):
            fit("--run_folder", folder)
    assert not (tmp_path / "s3:").exists()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"run_folder: .*link is a link to .*gone, which is not there"):
        fit("--run_folder", tmp_path / "link")


def test_what_a_job_wrote_before_its_run_began_stays(fit, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "slurm-17.out").write_text("began")
    fit(*ONE_STEP)
    assert (tmp_path / "run" / "slurm-17.out").read_text() == "began"
    assert not (tmp_path / "run.1").exists()


@pytest.mark.slow
def test_a_new_run_saves_in_its_folder_where_the_checkpoints_of_the_former_one_lie_elsewhere(fit, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(elsewhere)
    (elsewhere / "last.ckpt").touch()
    fit(*ONE_STEP)
    assert (tmp_path / "run" / "checkpoints" / "last" / "trainer.ckpt").is_file()
    assert (tmp_path / "run.1" / "checkpoints").is_symlink()
    assert [file.name for file in elsewhere.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("name", [".", pytest.param("run", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_working_directory_is_never_moved(fit, tmp_path, monkeypatch, name):
    fit(*ONE_STEP)
    monkeypatch.chdir(tmp_path / "run" if name == "." else tmp_path / "run" / "checkpoints")
    with pytest.raises(ConfigError, match="is the working directory, or holds it, and an earlier run"):
        fit("--run_folder", "." if name == "." else tmp_path / "run")


@pytest.mark.slow
def test_two_trainings_in_one_folder_are_refused(fit, tmp_path, monkeypatch):
    fit(*ONE_STEP)
    run, before = tmp_path / "run", files(tmp_path / "run")
    monkeypatch.setattr(run_folder, "_WAIT_SECONDS", 0.6)
    with FileLock(run / ".fit.lock"):
        for flags in ([], ["--ckpt_path", "last"]):
            with pytest.raises(ConfigError, match=f"run_folder: another process trains in {run}"):
                fit(*flags)
    assert files(run) == before


@pytest.mark.slow
def test_a_run_that_waits_for_another_goes_on_from_what_that_one_leaves(fit, tmp_path, capsys):
    fit(*ONE_STEP)
    folder = tmp_path / "run" / "checkpoints"
    lock = FileLock(tmp_path / "run" / ".fit.lock", thread_local=False)
    lock.acquire()

    def save_and_end():  # as a run that saves once more and removes its former checkpoint
        (folder / "step-000001").rename(folder / "step-000001-v1")
        (folder / "last").unlink()
        (folder / "last").symlink_to("step-000001-v1")
        lock.release()

    threading.Timer(3.0, save_and_end).start()
    fit("--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--ckpt_path", "last")
    assert "Another process still trains in" in capsys.readouterr().err
    assert (folder / "last").resolve().name == "step-000002"


@pytest.mark.slow
def test_a_last_checkpoint_that_is_gone_or_damaged_is_not_replaced_by_another(fit, tmp_path):
    flags = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1"]
    fit(*flags)
    whole = shutil.copytree(tmp_path / "run", tmp_path / "whole", symlinks=True)
    folder = tmp_path / "run" / "checkpoints"
    last = folder / os.readlink(folder / "last")
    (last / "checkpoint.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"the last checkpoint, .*, is damaged: it has no checkpoint.json. Complete"
    ):
        fit(*flags, "--ckpt_path", "last")
    shutil.rmtree(last)
    with pytest.raises(CheckpointError, match=r"the last checkpoint, .*, is gone\. Complete are"):
        fit(*flags, "--ckpt_path", "last")
    for manifest in folder.glob("*/checkpoint.json"):
        manifest.unlink()
        manifest.mkdir()
    with pytest.raises(CheckpointError, match=r"is gone\. No other is complete"):
        fit(*flags, "--ckpt_path", "last")

    folder = whole / "checkpoints"
    for link in [path for path in folder.iterdir() if path.is_symlink()]:
        link.unlink()  # as a copy to an object store loses them
    best = next(path for path in folder.glob("best*") if path.is_dir())
    os.utime(best / "checkpoint.json")
    from fastslm.checkpoint.folder import last_complete

    assert last_complete(folder).name == "step-000002"
