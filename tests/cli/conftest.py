"""Runs of the command on tiny models and shards, in this process or in one that may be killed."""

import os
import subprocess
import sys

import pytest
import yaml


@pytest.fixture
def run_config(tmp_path, tiny_encoder, tiny_llm, make_shards, trained_like_the_demo):
    """Return a file that makes ``fastslm fit`` a run of seconds: 12 recordings, 10 steps, validation at 5 and 10."""
    config = {
        "run_folder": str(tmp_path / "run"),
        "model": {
            "abstractor": {"class_path": "HTA", "init_args": {"head_width": 16}},
            "encoder": {"class_path": "WhisperEncoder", "init_args": {"pretrained": str(tiny_encoder)}},
            "llm": {
                "class_path": "CausalLM",
                "init_args": {
                    "pretrained": str(tiny_llm),
                    "initialize": "pretrained",
                    "lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
                },
            },
            "window_seconds": 2.0,
            "tokens_per_window": 4,
            "train_parts": ["abstractor", "projector", "lora"],
            "max_new_tokens": 4,
            "frame_cache": False,
            "optimizer": {"warmup_steps": 2, "part_learning_rates": {}},
        },
        "data": {
            "class_path": "WebDatasetModule",
            "init_args": {
                "train_shards": make_shards(tmp_path / "data", 12, seconds=[0.7, 2.0, 3.1, 5.4]),
                "val_shards": make_shards(tmp_path / "data", 3, seconds=[1.0, 4.2], name="val"),
                "batch_samples": 2,
                "num_workers": 0,
                "cache_dir": str(tmp_path / "cache"),
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 10,
            "val_check_interval": 5,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(trained_like_the_demo(config)))
    return path


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
