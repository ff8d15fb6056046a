"""Runs as training leaves them, on tiny models, without the training."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fastslm.checkpoint import trainable_state
from fastslm.checkpoint.run import open_run
from tests.inference.tiny_run import settings_of, write_run

LORA = {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": "all-linear"}
ALL_PARTS = ["abstractor", "projector", "lora"]
RATE = 16_000


def speech(seconds, seed=0):
    return (np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 2000).astype(np.int16)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Return a run on the embedded encoder and LLM, its compressor untrained."""
    settings = settings_of("fastslm:demo/encoder", "fastslm:demo/llm", window_seconds=4.8, tokens_per_window=8)
    return open_run(write_run(tmp_path_factory.mktemp("embedded") / "run", settings))


@pytest.fixture(scope="session")
def make_run(tiny_encoder, tiny_llm):
    """Return a maker of run folders: ``make_run(folder, abstractor, **model_settings)``."""
    from fastslm.training.from_settings import build_module

    def make(
        folder,
        abstractor="HTA",
        arguments=None,
        *,
        dtype="float32",
        lora=LORA,
        metrics="",
        mel_range="window",
        **settings,
    ):
        encoder = {"pretrained": str(tiny_encoder), "dtype": dtype, "mel_range": mel_range}
        model = {
            "encoder": {"class_path": "WhisperEncoder", "init_args": encoder},
            "abstractor": {"class_path": abstractor, "init_args": arguments or {}},
            "llm": {
                "class_path": "CausalLM",
                "init_args": {"pretrained": str(tiny_llm), "dtype": dtype, "lora": lora},
            },
            "window_seconds": 2.0,
            "tokens_per_window": 4,
            "train_parts": ALL_PARTS if lora else ["abstractor", "projector", "llm"],
            **settings,
        }
        torch.manual_seed(7)
        module, resolved = build_module(model)
        module.configure_model()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if ".lora_B" in name:  # fresh ones add nothing
                    parameter.normal_(std=0.1)
                elif "llm" in name and parameter.requires_grad:  # as if it had been trained
                    parameter.add_(torch.randn_like(parameter), alpha=0.01)
        config = {
            "model": resolved,
            "data": {"class_path": "x.WebDatasetModule", "init_args": {"train_shards": "a.tar"}},
        }
        (folder / "checkpoints").mkdir(parents=True)
        state = trainable_state(module, module.state_dict())
        torch.save(
            {"state_dict": state, "fastslm_config": config, "global_step": 20}, folder / "checkpoints" / "last.ckpt"
        )
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        if metrics:
            (folder / "metrics.csv").write_text(metrics)
        return folder

    return make


@pytest.fixture(scope="session")
def outside(tmp_path_factory):
    """Return a runner of jobs in a process without fastslm."""

    def run(jobs):
        folder = tmp_path_factory.mktemp("outside")
        torch.save(jobs, folder / "in.pt")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        script = Path(__file__).parent / "outside.py"
        done = subprocess.run(
            [sys.executable, "-I", str(script), str(folder / "in.pt"), str(folder / "out.pt")],
            capture_output=True, text=True, env=environment, cwd=folder, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return torch.load(folder / "out.pt", weights_only=False)

    return run


@pytest.fixture
def one_thread():
    """Use one thread, as the process without fastslm does, so that equal may mean equal to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
