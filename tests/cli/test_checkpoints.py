"""Checkpoints through the command: inspect, convert, the next stage, and from one strategy to another."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from fastslm.checkpoint import open_checkpoint, verify_trainer_state
from fastslm.cli import main

SHORT = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
ZERO3 = ["--trainer.devices", "2", "--trainer.strategy", "fastslm.strategies.ZeRORehearsal"]


def tensors_of(folder):
    return load_file(folder / "checkpoints" / "last" / "adapter.safetensors")


def assert_close(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name].float(), value.float(), **tolerance)


def saving(*steps):
    return [
        "--trainer.callbacks+=fastslm.callbacks.last_checkpoint.LastCheckpoint",
        "--trainer.callbacks.every_n_train_steps=1",
    ]


@pytest.mark.slow
def test_a_run_is_inspected_converted_continued_and_refused_when_damaged(fastslm, run_config, tmp_path):
    fit = ["fit", "--config", str(run_config), *SHORT]
    fastslm(*fit)
    run = tmp_path / "run"
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert_close(tensors_of(run), state["state_dict"], rtol=0, atol=0)

    shown = fastslm("checkpoint", "inspect", str(run)).stdout
    for part in (
        "step               2",
        "lora",
        "abstractor",
        "val/wer",
        "token budget       4 tokens per 2 s",
        "plan_hash",
    ):
        assert part in shown
    assert json.loads(fastslm("checkpoint", "inspect", str(run), "--json").stdout)["step"] == 2
    fastslm("checkpoint", "convert", str(run), str(tmp_path / "weights"))
    assert "already" in fastslm("checkpoint", "convert", str(run), str(tmp_path / "weights"), check=False).stderr

    # The next stage: other parts train, the weights are those of the first, and stay in the checkpoint.
    second = fastslm(
        *fit, "--run_folder", str(tmp_path / "second"), "--init_from", str(tmp_path / "weights"),
        "--model.train_parts", "[projector]",
    )  # fmt: skip
    assert "Starting from the weights of" in second.stderr
    before, after = tensors_of(run), tensors_of(tmp_path / "second")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".projector." in name for name in changed)

    longer = ["fit", "--config", str(run_config), "--ckpt_path", "last", "--trainer.max_steps", "3"]
    told = fastslm(*longer, "--trainer.val_check_interval", "1")
    assert "trainer.max_steps: 2 in the checkpoint, 3 here" in told.stderr
    assert open_checkpoint(run).manifest["step"] == 3

    weights = run / "checkpoints" / "last" / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused = fastslm(*longer, check=False)
    assert refused.returncode == 2
    assert "damaged: adapter.safetensors has" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_a_best_checkpoint_from_beyond_the_last_is_replaced_by_the_run_that_goes_on(fastslm, run_config, tmp_path):
    saving = ["--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.every_n_train_steps=2"]
    fit = ["fit", "--config", str(run_config), "--trainer.max_steps=4", "--trainer.val_check_interval=3", *saving]
    killed = ["--trainer.callbacks+=killers.KillAt", "--trainer.callbacks.batch=4", "--trainer.callbacks.when=start"]
    fastslm(*fit, *killed, check=False)
    assert open_checkpoint(tmp_path / "run").manifest["step"] == 2
    assert (tmp_path / "run" / "checkpoints" / "best-3.ckpt").exists()
    fastslm(*fit, "--ckpt_path", "last")
    links = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"))
    assert links == ["best-3.ckpt", "last.ckpt"]
    folders = [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.is_dir() and not path.is_symlink()]
    assert len(folders) == 2


@pytest.fixture
def refusal(capsys, run_config):
    """Return a runner of a command that must be refused; gives its message."""

    def run(*flags):
        capsys.readouterr()  # what was shown before
        status = main([*flags[:1], "--config", str(run_config), *flags[1:]])
        shown = capsys.readouterr()
        assert status == 2, shown.err
        assert "Traceback" not in shown.err
        assert shown.err.count("fastslm: error") == 1
        assert "WER" not in shown.out
        return shown.err

    return run


def other_llm(tiny_llm, folder, change):
    shutil.copytree(tiny_llm, folder)
    change(folder)
    return ["--model.llm.pretrained", str(folder)]


def moved_weights(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({n: w + 0.01 for n, w in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def one_more_word(folder):
    """Add a word in front of the markers of the prompt, which thereby all get other ids."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zyzzyva"])
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_what_does_not_fit_a_checkpoint_is_refused_before_the_first_step(refusal, run_config, tiny_llm, tmp_path):
    """Whatever the checkpoint is wanted for: to go on, to start from, to evaluate."""
    assert main(["fit", "--config", str(run_config), *SHORT]) == 0
    run = tmp_path / "run"
    shutil.copytree(run, tmp_path / "cut", symlinks=True)
    weights = tmp_path / "cut" / "checkpoints" / "last" / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    shutil.copytree(run, tmp_path / "cut-state", symlinks=True)
    state = tmp_path / "cut-state" / "checkpoints" / "last" / "trainer.ckpt"
    state.write_bytes(state.read_bytes()[:-1])
    misfits = {
        "model.tokens_per_window: 4 in the checkpoint, 5 here": ["--model.tokens_per_window", "5"],
        "model.window_seconds: 2.0 in the checkpoint, 1.0 here": ["--model.window_seconds", "1.0"],
        "model.abstractor.class_path": ["--model.abstractor", "AvgPool"],
        "its files have other content": other_llm(tiny_llm, tmp_path / "moved", moved_weights),
        "the vocabulary": other_llm(tiny_llm, tmp_path / "words", one_more_word),
        "model.llm.lora.rank: 2 in the checkpoint, 3 here": ["--model.llm.lora.rank", "3"],
        "damaged: adapter.safetensors has": ["cut"],
    }
    for said, flags in misfits.items():
        folder, flags = (tmp_path / "cut", []) if flags == ["cut"] else (run, flags)
        new = ["--run_folder", str(tmp_path / "new")]
        longer = ["--trainer.max_steps", "3", "--trainer.val_check_interval", "1"]
        for wanted in (
            ["fit", *longer, "--run_folder", str(folder), "--ckpt_path", "last"],
            ["fit", *longer, *new, "--init_from", str(folder)],
            ["validate", *new, "--ckpt_path", str(folder)],
        ):
            assert said in refusal(*wanted, *flags), wanted
    cut_state = ["--run_folder", str(tmp_path / "cut-state"), "--ckpt_path", "last"]
    assert "damaged" in refusal("fit", "--trainer.max_steps", "3", "--trainer.val_check_interval", "1", *cut_state)
    assert open_checkpoint(run).manifest["step"] == 2
    assert not (tmp_path / "new" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ZERO3], ids=["alone", "zero3"])
def test_a_run_that_was_killed_goes_on_to_the_same_weights(fastslm, run_config, tmp_path, flags):
    """What every strategy does after an orderly end is in ``tests/scale/test_checkpoints.py``."""
    fit = ["fit", "--config", str(run_config), "--trainer.val_check_interval", "2", *flags]
    fastslm(*fit, "--run_folder", str(tmp_path / "whole"), "--trainer.max_steps", "4", *saving())
    parts = [*fit, "--run_folder", str(tmp_path / "parts")]
    # The schedule of the whole run, stopped halfway.
    killed = fastslm(
        *parts, "--trainer.max_steps", "4", *saving(),
        "--trainer.callbacks+=killers.KillAt", "--trainer.callbacks.batch=3", "--trainer.callbacks.when=start",
        check=False,
    )  # fmt: skip
    assert killed.returncode != 0
    assert open_checkpoint(tmp_path / "parts").manifest["step"] == 2
    fastslm(*parts, "--trainer.max_steps", "4", "--ckpt_path", "last", *saving())
    assert_close(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "parts"), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["2", "3"])
def test_a_deepspeed_run_goes_on_with_another_number_of_processes(fastslm, run_config, tmp_path, stage):
    strategy = ["--trainer.strategy", "fastslm.strategies.ZeRORehearsal", "--trainer.strategy.stage", stage]
    rates = ["--model.optimizer.part_learning_rates", "{lora: 1.0e-4}", "--model.optimizer.schedule", "constant"]
    fit = ["fit", "--config", str(run_config), *strategy, *rates, "--trainer.val_check_interval", "2"]
    fastslm(*fit, "--trainer.devices", "2", "--trainer.max_steps", "2")
    before = tensors_of(tmp_path / "run")
    fastslm(*fit, "--trainer.devices", "1", "--trainer.max_steps", "4", "--ckpt_path", "last")
    checkpoint = open_checkpoint(tmp_path / "run")
    assert (checkpoint.manifest["step"], checkpoint.manifest["world_size"]) == (4, 1)
    after = checkpoint.tensors()
    assert before.keys() == after.keys()
    moved = max((after[name] - value).abs().max().item() for name, value in before.items())
    assert 0 < moved < 0.1
    with open(tmp_path / "run" / "metrics.csv") as file:
        last = [row for row in csv.DictReader(file) if row["lr-AdamW/lora"]][-1]
    assert float(last["lr-AdamW/lora"]) == pytest.approx(1e-4)  # and not that of the first group
    assert float(last["lr-AdamW/abstractor"]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ZERO3], ids=["alone", "zero3"])
def test_a_run_killed_at_any_time_leaves_last_complete(run_config, tmp_path, flags):
    """Kills whole process groups while every step saves."""
    run = tmp_path / "run"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fastslm", "fit", "--config", str(run_config), *flags, *saving()]
    command += ["--trainer.max_steps", "1000", "--trainer.val_check_interval", "1000", "--ckpt_path", "last"]
    step = 0
    for trial in range(4):
        with open(tmp_path / "log", "w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            began = time.monotonic()
            while time.monotonic() - began < 280 and process.poll() is None:
                link = run / "checkpoints" / "last"
                if link.is_symlink() and os.readlink(link) > f"step-{step + 2:06d}":
                    break
                time.sleep(0.05)
            time.sleep(0.07 * trial)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        checkpoint = open_checkpoint(run)
        verify_trainer_state(checkpoint)
        checkpoint.tensors()
        assert checkpoint.manifest["step"] > step, (tmp_path / "log").read_text()
        step = checkpoint.manifest["step"]
