"""Runs and exported folders of version 0.1 load, say what they said, and are gone on from.

``version_0_1/`` was made by that version; its README.txt has the commands, ``expected.json`` what it said.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import fastslm
from fastslm.cli import main

OLD = Path(__file__).parent / "version_0_1"
EXPECTED = json.loads((OLD / "expected.json").read_text())


@pytest.fixture
def old(tmp_path, monkeypatch):
    """Return a copy of the folders, the working directory; their paths are relative."""
    copy = tmp_path / "old"
    shutil.copytree(OLD, copy, symlinks=True)
    monkeypatch.chdir(copy)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield copy
    torch.set_num_threads(threads)


def run(capsys, *arguments):
    assert main(list(arguments)) == 0
    shown = capsys.readouterr()
    return shown.out + shown.err


def metrics(folder):
    """Return the values of a run's metrics by name and step."""
    found = {}
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    found.setdefault(name, {})[row["step"]] = float(value)
    return found


@pytest.mark.parametrize("kind", ["window", "recording", "window-exported", "recording-exported"])
def test_a_model_of_before_says_what_it_said(old, kind):
    model = fastslm.load(kind, device="cpu")
    expected = EXPECTED[kind]["transcripts"]
    assert model.transcribe("audio.flac").text == expected["audio.flac"]
    assert model.transcribe("audio.flac", section_minutes=2 / 60).text == expected["audio.flac, section_minutes=2/60"]
    assert model.ask("audio.flac", "How many numbers?").text == expected["audio.flac, ask"]


@pytest.mark.parametrize("kind", ["window", "recording"])
def test_a_run_of_before_has_the_validation_loss_it_had(old, capsys, kind):
    overlay = ["--config", "recording-now.yaml"] if kind == "recording" else []
    (old / "recording-now.yaml").write_text("model:\n  encoder:\n    init_args:\n      mel_range: recording\n")
    flags = ["--config", "tiny.yaml", *overlay, "--run_folder", "scratch", "--ckpt_path", kind]
    shown = run(capsys, "validate", *flags)
    expected = EXPECTED[kind]["validate"]
    assert f"WER {100 * expected['val/wer']:.2f}%" in shown
    assert f"loss {expected['val/loss']:.4f}" in shown
    rows = [json.loads(line) for line in (old / "scratch" / "predictions-val.jsonl").read_text().splitlines()]
    assert {row["key"]: row["hypothesis"] for row in rows} == expected["texts"]


def test_a_run_of_before_goes_on_with_the_losses_it_would_have_had(old, capsys):
    steps = ["--trainer.max_steps", "122", "--trainer.val_check_interval", "2"]
    run(capsys, "fit", "--config", "tiny.yaml", "--ckpt_path", "last", *steps)
    found, expected = metrics(old / "window"), EXPECTED["window"]["resume_to_122_steps"]
    for name in ("train/loss", "train/alignment_loss", "val/loss", "val/wer"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name


def test_a_run_of_before_is_where_another_starts(old, capsys):
    steps = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--run_folder", "next"]
    shown = run(capsys, "fit", "--config", "tiny.yaml", "--init_from", "window", *steps)
    assert "Starting from the weights of" in shown
    assert metrics(old / "next")["train/loss"]["0"] < 3.0  # from the base models it begins at 6.9


def test_a_checkpoint_of_before_is_inspected(old, capsys):
    shown = run(capsys, "checkpoint", "inspect", "window")
    assert "120" in shown


def test_a_configuration_of_before_is_told_the_new_name_of_its_key(old, capsys):
    assert main(["validate", "--config", "tiny.yaml", "--config", "recording.yaml", "--ckpt_path", "recording"]) == 2
    assert "model.mel_range: this key is now model.encoder.mel_range" in capsys.readouterr().err


def test_recordings_of_before_are_as_they_were(old):
    model = fastslm.load("window", device="cpu")
    samples, rate = soundfile.read("audio.flac", dtype="int16")
    assert rate == 16_000
    assert model.transcribe(np.asarray(samples)).text == EXPECTED["window"]["transcripts"]["audio.flac"]
