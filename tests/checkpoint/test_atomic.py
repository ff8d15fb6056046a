"""Kills and full disks during a save: the newest good checkpoint stays usable, and ``last`` leads to a complete one."""

import errno
import os
import random
import shutil
import signal
import subprocess
import time
import traceback
from collections import namedtuple

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from fastslm.checkpoint import load_weights, open_checkpoint, stored_names, verify_trainer_state
from fastslm.checkpoint.folder import last_complete
from fastslm.errors import CheckpointError
from fastslm.strategies import FSDP2


def fill(module, value):
    for name, parameter in module.named_parameters():
        if name in set(stored_names(module)):
            parameter.data.fill_(value)


def forked(action):
    """Run ``action`` in a child process and return its id."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(1)
    return child


def kill_while_saving(module, save, folder, trials, seed):
    """Kill a process that saves without pause at random moments; check after each what it left."""
    rng = random.Random(seed)
    step = 0
    fill(module, 0.0)
    begun = time.monotonic()
    save(module, 0, folder=folder)
    pace = time.monotonic() - begun

    def forever(first):
        for number in range(first, 10_000):
            fill(module, float(number))
            save(module, number, folder=folder)

    for _ in range(trials):
        child = forked(lambda: forever(step + 1))  # noqa: B023 -- runs at once
        time.sleep(rng.uniform(0.2, 3.0) * pace)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if last_complete(folder) is None:
            raise AssertionError("no complete checkpoint is left")
        checkpoint = open_checkpoint(folder / "last.ckpt")
        verify_trainer_state(checkpoint)
        assert checkpoint.manifest["step"] >= step  # no save that was complete is lost
        step = checkpoint.manifest["step"]
        load_weights(module, checkpoint, "resume", report=False)
        for name, value in checkpoint.tensors().items():
            assert torch.all(value == step), name
    return step


def test_a_kill_during_a_save_leaves_the_newest_good_one(built, save, tmp_path):
    assert kill_while_saving(built(), save, tmp_path / "checkpoints", trials=8, seed=0) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_many_kills_during_saves(built, save, tmp_path, seed):
    """Three times 30 kills; ``FASTSLM_TEST_KILLS=100 pytest -m slow tests/checkpoint`` makes it three hundred."""
    trials = int(os.environ.get("FASTSLM_TEST_KILLS", "30"))
    assert kill_while_saving(built(), save, tmp_path / "checkpoints", trials, seed) > 0


@pytest.mark.parametrize("call", ["fsync", "rename", "symlink", "replace"])
def test_a_kill_at_any_call_to_the_disk_leaves_a_complete_one(built, save, tmp_path, monkeypatch, call):
    module, folder = built(), tmp_path / "checkpoints"
    save(module, 1, folder=folder)
    real = getattr(os, call)
    step = 1
    for number in range(12):
        calls = iter(range(100))

        def dying(*arguments, calls=calls, number=number, **named):
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        def once(dying=dying, target=step + 1):
            monkeypatch.setattr(os, call, dying)
            save(module, target, folder=folder)
            os._exit(0)

        _, status = os.waitpid(forked(once), 0)
        found = open_checkpoint(folder / "last.ckpt").manifest["step"]
        assert found in (step, step + 1)
        step = found
        if status == 0:
            break
    else:
        raise AssertionError("the save never came to its end")
    assert sorted(path.name for path in folder.iterdir()) == ["last", "last.ckpt", f"step-{step:06d}"]


def test_there_is_one_step_folder_and_other_names_keep_theirs(built, save, tmp_path):
    module = built()
    best = save(module, 1, name="best-step=1")
    for step in (1, 2, 2, 3):
        save(module, step)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best-step=1", "best-step=1.ckpt", "last", "last.ckpt", "step-000003"]
    assert open_checkpoint(best).manifest["step"] == 1


def test_a_checkpoint_of_lightning_alone_gives_way_to_a_complete_one(built, save, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save({}, folder / "last.ckpt")
    assert open_checkpoint(save(built(), 5)).manifest["step"] == 5
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied, symlinks=False)  # what cp -rL and some object stores make of links
    save(built(), 6, folder=copied)
    assert open_checkpoint(copied / "last.ckpt").manifest["step"] == 6
    assert sorted(path.name for path in copied.iterdir()) == ["last", "last.ckpt", "step-000006"]


def test_no_room_is_said_before_anything_is_written(built, save, tmp_path, monkeypatch):
    module = built()
    kept = save(module, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 100, 0))
    with pytest.raises(CheckpointError, match=f"no room for a checkpoint.*kept: {kept}"):
        save(module, 2)
    assert open_checkpoint(tmp_path / "checkpoints").path == kept


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
NO_SPACE_IN_RUST = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("late", "error"),
    [(False, NO_SPACE), (True, NO_SPACE), (True, NO_SPACE_IN_RUST)],
    ids=["in the trainer's state", "in the weights", "in the weights, as safetensors says it"],
)
def test_a_disk_that_fills_up_during_a_save_keeps_the_old_one(built, save, tmp_path, monkeypatch, late, error):
    module = built()
    kept = save(module, 1)

    def full(*_arguments, **_named):
        raise error

    if late:
        monkeypatch.setattr("fastslm.checkpoint.writer.save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*--ckpt_path last"):
        save(module, 2, write_state=None if late else full)
    assert open_checkpoint(tmp_path / "checkpoints").path == kept
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_disk_that_fills_up_under_fsdp2_is_said_to_be_full(monkeypatch):
    """torch tells of it with an exception of its own, which Python does not count among the errors."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(*_arguments):
        raise CheckpointException("writing", {1: (full, traceback.StackSummary())})

    monkeypatch.setattr(ModelParallelStrategy, "save_checkpoint", save)
    with pytest.raises(OSError, match="No space left on device"):
        FSDP2().save_checkpoint({}, "somewhere")


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_small_disk_that_is_really_full_keeps_the_old_one(built, save, small_disk):
    module = built()
    kept = save(module, 1, folder=small_disk)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "other").write_bytes(bytes(free - 200_000))
    big = torch.zeros(100_000)
    with pytest.raises(CheckpointError, match="no room for a checkpoint"):
        save(module, 2, folder=small_disk, write_state=lambda path: torch.save(big, path))
    assert open_checkpoint(small_disk / "last").path == kept
    (small_disk / "other").unlink()
    assert open_checkpoint(save(module, 3, folder=small_disk)).manifest["step"] == 3


def test_a_checkpoint_without_the_state_of_the_trainer_is_not_published(built, save, tmp_path):
    module = built()
    before = save(module, 1)
    with pytest.raises(CheckpointError, match=r"wrote no trainer\.ckpt.*trainer\.plugins"):
        save(module, 2, write_state=lambda path: None)
    assert sorted(path.name for path in before.parent.iterdir()) == ["last", "last.ckpt", "step-000001"]


def test_a_folder_that_a_kill_kept_its_link_from_is_removed_by_the_next_save(built, save, tmp_path):
    module = built()
    best = save(module, 1, name="best-1")
    (tmp_path / "checkpoints" / "best-1.ckpt").unlink()
    (tmp_path / "checkpoints" / "mine").mkdir()
    assert save(module, 1, name="best-1") != best
    assert sorted(path.name for path in best.parent.iterdir()) == ["best-1-v1", "best-1.ckpt", "mine"]
