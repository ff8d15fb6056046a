"""SIGKILL while shards are resharded and indexed, again and again: in the end the bytes are those of one quiet run."""

import os
import random
import signal
import time
import zipfile

import pytest

from fastslm.datamodules.index.scan import scan_tar


def kill_after(process, folder, pattern, count):
    """Kill a process and its workers once a folder holds so many files of a pattern; say whether it came to that."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob(pattern))) < count:
        if process.poll() is not None or time.monotonic() > deadline:
            break
        time.sleep(0.001)
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return killed


@pytest.fixture
def many(tmp_path, make_shards):
    """Return a folder of 40 shards of two samples each."""
    make_shards(tmp_path / "old", 80, [0.3, 0.5, 0.8], per_shard=2)
    return tmp_path / "old"


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_reshard_that_is_killed_goes_on_to_the_same_bytes(many, shards, in_process, tmp_path, tar_bytes, num_workers):
    arguments = ["reshard", many, "--shard-size", "3samples", "--order", "shuffle", "--seed", 7]
    assert shards(*arguments, "--out", tmp_path / "whole", "--workers", 1) == 0
    killed, rng, kills = tmp_path / "killed", random.Random(num_workers), 0
    killed.mkdir()
    for goal in sorted(rng.sample(range(1, 25), 3)):
        process = in_process(*arguments, "--out", killed, "--workers", num_workers)
        kills += kill_after(process, killed, "*.tar", goal)
    assert kills == 3
    assert shards(*arguments, "--out", killed, "--workers", num_workers) == 0
    assert tar_bytes(killed) == tar_bytes(tmp_path / "whole")
    assert not list(killed.glob(".*.partial"))
    assert shards("check", killed) == 0


@pytest.mark.slow
def test_indexing_that_is_killed_leaves_whole_indexes_and_goes_on(many, shards, in_process, tmp_path):
    for goal in (1, 12, 30):
        assert kill_after(in_process("index", many, "--workers", 2), many, "*.npz", goal)
        for index in many.glob("*.npz"):  # each is whole or not there
            assert zipfile.ZipFile(index).testzip() is None
    assert shards("index", many, "--workers", 1) == 0
    assert len(list(many.glob("*.npz"))) == 40
    assert shards("check", many, "--workers", 1) == 0


def test_an_index_that_is_made_again_has_the_same_bytes(many, shards, tmp_path):
    shard = many / "train-000000.tar"
    assert shards("index", shard, "--workers", 1) == 0
    first = shard.with_name(shard.name + ".index.npz")
    before = first.read_bytes()
    time.sleep(2.1)  # the times in a zip count in steps of two seconds
    assert shards("index", shard, "--force", "--workers", 1) == 0
    assert first.read_bytes() == before
    assert scan_tar(shard).keys == ["train-000", "train-001"]
