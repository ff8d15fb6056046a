"""Runs of several processes on loopback: each process does a list of jobs, so that starting them is paid once."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fastslm.configuration.find import shipped_configs

HERE = Path(__file__).parent
#: Generous: the machine may be busy. A hang is what the limit is for.
LIMIT_SECONDS = 1800


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment_of(rank, world_size, port):
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(HERE),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(world_size),
    }


class Processes:
    """Processes that end with the test, whatever happens in it."""

    def __init__(self, commands, environments):
        self.members = [
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                start_new_session=True,
            )
            for command, environment in zip(commands, environments, strict=True)
        ]  # fmt: skip

    def wait(self, seconds=LIMIT_SECONDS):
        """Return (exit status, output) of each."""
        try:
            return [(member.communicate(timeout=seconds)[0], member.returncode)[::-1] for member in self.members]
        finally:
            self.kill()

    def kill(self):
        for member in self.members:
            if member.poll() is None:
                os.killpg(member.pid, signal.SIGKILL)
                member.wait()


@pytest.fixture(name="free_port")
def _free_port():
    return free_port


@pytest.fixture
def start():
    """Return a starter of processes from commands and environments; what still runs at the end is killed."""
    started = []

    def begin(commands, environments):
        started.append(Processes(commands, environments))
        return started[-1]

    yield begin
    for processes in started:
        processes.kill()


@pytest.fixture
def run_jobs(start, tmp_path):
    """Return a runner: every rank does all jobs (see ``worker.py``) in order; gives their outputs.

    ``packages`` is a folder of packages that only the last rank sees.
    """

    def run(world_size, jobs, check=True, packages=None):
        path = tmp_path / f"jobs-{world_size}-{free_port()}.json"
        path.write_text(json.dumps(jobs))
        port = free_port()
        command = [sys.executable, str(HERE / "worker.py"), str(path)]
        environments = [environment_of(rank, world_size, port) for rank in range(world_size)]
        if packages is not None:
            environments[-1]["PYTHONPATH"] = os.pathsep.join([str(packages), environments[-1]["PYTHONPATH"]])
        done = start([command] * world_size, environments).wait()
        if check:
            shown = [
                f"--- rank {rank} ended with {done[rank][0]}\n{done[rank][1][-3000:]}" for rank in range(world_size)
            ]
            assert all(status == 0 for status, _ in done), "\n".join(shown)
        return done

    return run


@pytest.fixture
def run_config(tmp_path, tiny_encoder, tiny_llm, make_shards, trained_like_the_demo):
    """Return a file for runs of seconds: 16 recordings of 0.7 to 15.4 s, 5 of validation, windows of 2 s by twos."""
    shipped = yaml.safe_load((shipped_configs() / "hta.yaml").read_text())["model"]["abstractor"]
    config = {
        "run_folder": str(tmp_path / "run"),
        "model": {
            "abstractor": {"class_path": "HTA", "init_args": {**shipped["init_args"], "head_width": 16}},
            "encoder": {"class_path": "WhisperEncoder", "init_args": {"pretrained": str(tiny_encoder)}},
            "llm": {
                "class_path": "CausalLM",
                "init_args": {
                    "pretrained": str(tiny_llm),
                    "initialize": "pretrained",
                    "lora": {"rank": 2, "alpha": 4, "dropout": 0.0},
                },
            },
            "window_seconds": 2.0,
            "tokens_per_window": 4,
            "encoder_batch_windows": 2,
            "frame_cache": str(tmp_path / "frames"),
            "train_parts": ["abstractor", "projector", "lora"],
            "max_new_tokens": 4,
            "mix_style": 0.0,  # both draw on each rank, and one process would draw otherwise
            "token_noise": 0.0,
            "optimizer": {"warmup_steps": 2, "part_learning_rates": {}},
        },
        "data": {
            "class_path": "WebDatasetModule",
            "init_args": {
                "train_shards": make_shards(tmp_path / "data", 16, seconds=[0.7, 2.0, 3.1, 15.4]),
                "val_shards": make_shards(tmp_path / "data", 5, seconds=[1.0, 4.2], name="val"),
                "batch_samples": 2,
                "num_workers": 0,
                "cache_dir": str(tmp_path / "cache"),
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 4,
            "val_check_interval": 4,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(trained_like_the_demo(config)))
    return path
