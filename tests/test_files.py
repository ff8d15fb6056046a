"""Files that are whole or not there: after an error, after a kill, and when two processes write at once."""

import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from fastslm import cli
from fastslm.errors import CheckpointError
from fastslm.files import remove_partials, whole_file, whole_folder, write_atomically


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    target = tmp_path / "file.bin"
    with whole_file(target) as partial:
        partial.file.write(b"first ")
        assert not target.exists()
        assert partial.path.parent == target.parent
        partial.file.write(b"second")
    assert target.read_bytes() == b"first second"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file.txt"
    write_atomically(target, "old")

    def write():
        with whole_file(target) as partial:
            partial.file.write(b"new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.fixture
def small_files():
    """Let no file be larger than 1000 bytes: what is met on a full disk, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("library", ["Python", "safetensors"])
def test_what_a_disk_does_not_take_is_named_with_a_way_out(tmp_path, small_files, monkeypatch, capsys, library):
    target = tmp_path / "target"

    def command(_arguments):
        if library == "Python":
            write_atomically(target, "x" * 2000)
        with whole_folder(target) as partial:
            save_file({"weight": torch.zeros(1000)}, partial / "weights.safetensors")

    monkeypatch.setattr(cli, "_run", command)
    assert cli.main([]) == 2
    way_out = "Raise the limit of a file's size (ulimit -f), and give the same command again."
    assert capsys.readouterr().err == f"fastslm: error: {target}: File too large. {way_out}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("base.safetensors cannot be read: No such file (os error 2)"),
        CheckpointError("the disk is full: No space left on device (os error 28)"),
        RuntimeError("hub: connection refused (os error 111)"),
    ],
)
def test_an_error_of_something_else_stays_what_it_is(tmp_path, error):
    with pytest.raises(type(error), match=re.escape(str(error))), whole_folder(tmp_path / "target"):
        raise error


def test_what_is_not_wanted_does_not_appear(tmp_path):
    with whole_file(tmp_path / "file") as partial:
        partial.wanted = False
    assert list(tmp_path.iterdir()) == []


def test_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_it_may_lie_elsewhere_until_then(tmp_path):
    (tmp_path / "state").mkdir()
    with whole_file(tmp_path / "file", folder=tmp_path / "state") as partial:
        assert partial.path.parent == tmp_path / "state"
    assert (tmp_path / "file").exists()
    assert list((tmp_path / "state").iterdir()) == []


WRITER = """
import sys, time
from pathlib import Path
from fastslm.files import whole_file
with whole_file(Path(sys.argv[1])) as partial:
    partial.file.write(sys.argv[2].encode() * 1000)
    partial.file.flush()
    print("half", flush=True)
    time.sleep(float(sys.argv[3]))
    partial.file.write(sys.argv[2].encode() * 1000)
"""


def writer(path, letter, seconds):
    words = [sys.executable, "-c", WRITER, str(path), letter, str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    write_atomically(target, "old")
    process = writer(target, "n", 60)
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert target.read_text() == "old"


def test_what_a_killed_writer_has_left_is_removed_and_what_another_writes_is_not(tmp_path):
    killed, writing = writer(tmp_path / "killed.txt", "n", 60), writer(tmp_path / "writing.txt", "n", 60)
    assert [process.stdout.readline() for process in (killed, writing)] == ["half\n"] * 2
    killed.kill()
    killed.wait()
    (tmp_path / ".killed.txt.mine.partial").write_text("a name that this never gives")
    (tmp_path / ".other.txt.abcd1234.partial").write_text("of another file")
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    remove_partials([tmp_path / "killed.txt", tmp_path / "writing.txt", tmp_path / "none" / "x"])
    left = sorted(path.name for path in tmp_path.iterdir())
    writing.kill()
    assert left[0] == ".killed.txt.mine.partial"
    assert left[1] == ".other.txt.abcd1234.partial"
    assert left[2].startswith(".writing.txt.")
    assert len(left) == 3


def test_two_at_once_leave_one_whole_file(tmp_path):
    target = tmp_path / "file"
    both = [writer(target, letter, 0.2) for letter in "ab"]
    deadline = time.time() + 60
    for process in both:
        assert process.wait(deadline - time.time()) == 0
    assert target.read_text() in ("a" * 2000, "b" * 2000)
    assert list(tmp_path.iterdir()) == [target]


def test_of_two_that_write_one_folder_at_once_the_second_says_that_another_has_written_it(tmp_path):
    (tmp_path / "a").mkdir()  # one that is empty is no hindrance

    def write(text, meanwhile):
        with whole_folder(tmp_path / "a") as partial:
            (partial / "file").write_text(text)
            meanwhile()

    with pytest.raises(CheckpointError, match="a was written by another process meanwhile"):
        write("late", lambda: write("early", lambda: None))
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert (tmp_path / "a" / "file").read_text() == "early"


def test_what_a_killed_process_has_left_of_a_folder_is_removed_and_what_another_makes_is_not(tmp_path):
    child = os.fork()
    if child == 0:
        with whole_folder(tmp_path / "a") as partial:
            (partial / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = tmp_path.glob(".a.*.partial")
    os.utime(left, (0, 0))
    with whole_folder(tmp_path / "a"):
        assert len(list(tmp_path.glob(".a.*.partial"))) == 1  # its own
        (next(tmp_path.glob(".a.*.partial")) / "file").write_text("whole")
        with whole_folder(tmp_path / "ab"):
            assert len(list(tmp_path.glob(".a.*.partial"))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "ab"]


def test_what_a_killed_process_has_left_of_a_folder_is_removed_though_the_folder_is_there_by_now(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").touch()
    left = tmp_path / ".a.abcd1234.partial"
    left.mkdir()
    os.utime(left, (0, 0))
    with pytest.raises(CheckpointError, match="exists and is not empty"), whole_folder(tmp_path / "a"):
        pass
    assert not left.exists()
