"""The three stages: each starts from the weights of the one before, and leaves alone what it does not train."""

import copy
import csv
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fastslm.checkpoint import open_checkpoint
from fastslm.training.command_line import TrainingCLI, command_line

SCRIPT = Path(__file__).parents[2] / "docs" / "three_stages.sh"


def tensors(folder):
    return open_checkpoint(folder).tensors()


def parts_of(state):
    """Return the names of a checkpoint's tensors by part."""
    parts = {"lora": [], "projector": [], "abstractor": []}
    for name in state:
        if ".lora_" in name:
            parts["lora"].append(name)
        elif name.startswith("path.abstractor."):
            parts["projector" if name.startswith("path.abstractor.projector.") else "abstractor"].append(name)
    assert all(parts.values())
    return parts


def equal(state, other, names):
    return [torch.equal(state[name], other[name]) for name in names]


def test_the_end_of_a_stage_without_the_llm_names_the_next_stage_and_its_use(run_config, tmp_path, capfd):
    letters = ["--model.answer_weight", "0", "--model.letters_per_token", "16", "--model.alignment_weight", "1"]
    letters += ["--model.train_parts", "[abstractor, projector]", "--run_folder", str(tmp_path / "stage0")]
    steps = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]
    command_line(TrainingCLI, ["fit", "--config", str(run_config), *letters, *steps])
    said = capfd.readouterr().out
    assert f"--init_from {tmp_path / 'stage0'}" in said
    assert f"fastslm transcribe FILES --model {tmp_path / 'stage0'}" in said


@pytest.mark.slow
def test_a_stage_starts_from_the_former_one_and_leaves_frozen_parts_as_they_are(run_config, tmp_path, tiny_llm, capfd):
    first, second = tmp_path / "first", tmp_path / "second"
    rates = ["--model.optimizer.learning_rate", "1.0e-2", "--model.optimizer.warmup_steps", "1"]
    fit = ["fit", "--config", str(run_config), *rates, "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    command_line(TrainingCLI, [*fit, "--run_folder", str(first)])
    frozen = ["--model.train_parts", "[projector]", "--init_from", str(first), "--run_folder", str(second)]
    run = command_line(TrainingCLI, [*fit, *frozen])
    assert f"Starting from the weights of {first}" in capfd.readouterr().err

    before, after = tensors(first), tensors(second)
    parts = parts_of(before)
    for name in ("abstractor", "lora"):
        assert all(equal(before, after, parts[name])), name
    assert not any(equal(before, after, parts["projector"]))
    # Not the same merely because nothing was trained: stage one had moved what stage two left alone.
    assert max(before[name].abs().max() for name in parts["lora"] if "lora_B" in name) > 0

    shipped = load_file(tiny_llm / "model.safetensors")
    base = {n: p for n, p in run.model.path.llm.named_parameters() if ".lora_" not in n}
    found = [
        (p, shipped[key]) for n, p in base.items() for key in shipped if n.replace(".base_layer", "").endswith(key)
    ]
    assert len(found) == len(shipped)
    assert all(torch.equal(parameter.detach().cpu(), value) for parameter, value in found)


def test_a_model_that_was_trained_can_be_copied(run_config):
    steps = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    trained = command_line(TrainingCLI, ["fit", "--config", str(run_config), *steps]).model
    state, copied = trained.state_dict(), copy.deepcopy(trained).state_dict()
    assert all(equal(state, copied, state))


@pytest.mark.slow
def test_the_documented_script_trains_all_tasks_from_stage_to_stage(run_config, tmp_path):
    """The embedded corpus at a few seconds a recording, and models of random weights."""
    settings = yaml.safe_load(run_config.read_text())
    tiny = {
        "model": {
            "encoder": {"init_args": settings["model"]["encoder"]["init_args"]},
            "abstractor": {"init_args": {"head_width": 16}},
            "llm": {"init_args": {"pretrained": settings["model"]["llm"]["init_args"]["pretrained"]}},
            "window_seconds": 2.0,
            "tokens_per_window": 4,
            "max_new_tokens": 4,
            "frame_cache": False,
        },
        "data": {
            "class_path": "SpokenNumbers",  # encoder and LLM are named, so no demo takes their places
            "init_args": {
                "train_recordings": 10,
                "dev_recordings": 5,
                "min_seconds": 4.0,
                "max_seconds": 9.0,
                "batch_samples": 5,
                "num_workers": 0,
                "cache_dir": str(tmp_path / "cache"),
            },
        },
        "trainer": settings["trainer"] | {"max_steps": 2, "val_check_interval": 2},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    done = subprocess.run(
        [SCRIPT, tmp_path / "runs", "--config", tmp_path / "tiny.yaml"],
        capture_output=True, text=True, timeout=1800, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    runs = tmp_path / "runs"
    for before in ("stage1", "stage2"):
        assert f"Starting from the weights of {runs / before}" in done.stderr
    with open(runs / "stage3" / "metrics.csv") as file:
        columns = set(csv.DictReader(file).fieldnames)
    scores = ("wer", "cer", "bleu", "chrf", "rouge_l", "answer_accuracy", "answer_f1", "error", "loss")
    assert {f"val/{name}" for name in scores} <= columns
    for shown in ("WER", "BLEU", "chrF", "ROUGE-L", "answer accuracy"):
        assert shown in done.stdout
    rows = (runs / "stage3" / "predictions-val.jsonl").read_text().splitlines()
    assert {json.loads(row)["task"] for row in rows} == {"asr", "ast", "ssum", "sqqa", "dialogue"}
    states = [tensors(runs / stage) for stage in ("stage1", "stage2", "stage3")]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    for names in parts_of(states[0]).values():
        assert not all(equal(states[0], states[1], names))
        assert not all(equal(states[1], states[2], names))
