"""Pools whose processes leave the signals of a group to their parent, and end with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys, time
from fastslm.processes.children import ProcessPool, shielded_context

def slow(number):
    open(f"{sys.argv[2]}/{number}", "w").close()
    time.sleep(float(sys.argv[3]))
    return number

if __name__ == "__main__":
    got = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: got.append(number))
    with ProcessPool(2, shielded_context(sys.argv[1])) as pool:
        done = list(pool.map(slow, range(2)))
    print(done, sorted(int(n) for n in got), flush=True)
"""

KILLED = """
import os, signal, time
from concurrent.futures.process import BrokenProcessPool
from fastslm.processes.children import ProcessPool, shielded_context

class Slow(ProcessPool):
    def _spawn_process(self):
        if len(self._processes) == 1:
            os.kill(next(iter(self._processes)), signal.SIGKILL)
            time.sleep(0.3)
        super()._spawn_process()

if __name__ == "__main__":
    with Slow(3, shielded_context("forkserver")) as pool:
        try:
            for work in [pool.submit(time.sleep, 5) for _ in range(3)]:
                work.result()
        except BrokenProcessPool:
            print("broken")
"""


@pytest.fixture(params=[pytest.param("spawn", marks=pytest.mark.slow), "forkserver"])
def pool_at_work(request, tmp_path):
    """Return a starter of a process whose two children work for some seconds, in a group of its own."""
    script = tmp_path / "pool.py"
    script.write_text(SCRIPT)
    started = []

    def start(seconds):
        begun = tmp_path / "begun"
        begun.mkdir()
        command = [sys.executable, str(script), request.param, str(begun), str(seconds)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        deadline = time.monotonic() + 120
        while len(list(begun.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        return process

    yield start
    for process in started:
        if group_of(process):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def group_of(process):
    states = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == process.pid and fields[0] != "Z":
            states[int(entry.parent.name)] = fields[0]
    return states


def test_work_goes_on_through_the_signals_of_a_group(pool_at_work):
    process = pool_at_work(3)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.killpg(process.pid, number)
    shown, errors = process.communicate(timeout=120)
    assert shown.strip() == "[0, 1] [2, 10, 15]"
    assert not errors


def test_nothing_is_left_of_a_pool_whose_parent_was_killed(pool_at_work):
    process = pool_at_work(600)
    assert len(group_of(process)) >= 3
    process.kill()
    deadline = time.monotonic() + 20
    while group_of(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not group_of(process)


@pytest.mark.parametrize("method", [pytest.param("spawn", marks=pytest.mark.slow), "forkserver"])
def test_a_script_runs_once_whether_it_guards_itself_or_not(tmp_path, method):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import sys\nfrom fastslm.processes.children import ProcessPool, shielded_context, without_script\n"
        "print('begun')\nwith ProcessPool(2, shielded_context(sys.argv[1])) as pool, without_script():\n"
        "    print(list(pool.map(abs, [-1, -2])))\n"
    )
    done = subprocess.run([sys.executable, str(script), method], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("begun\n[1, 2]\n", "")


def test_a_process_that_is_killed_while_another_starts_breaks_the_pool_and_nothing_else(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("broken\n", "", 0)
