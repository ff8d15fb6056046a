"""Runs of the command on tiny models and shards, in this process or in one that may be killed."""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def fastslm(run_config):
    """Return a runner of the command in a process of its own."""

    def run(*arguments, check=True):
        environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "fastslm", *arguments], capture_output=True, text=True, env=environment, timeout=900
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run
