"""A third party's source of batches, installed: it is listed, trains by its name, and goes on after a kill."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

PLUGIN = Path(__file__).parents[1] / "plugin" / "folder_source"
pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path):
    """Return a folder that the plug-in is installed in, from a copy: a build leaves things behind."""
    shutil.copytree(PLUGIN, tmp_path / "plugin")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--target"]
    subprocess.run([*pip, tmp_path / "site", tmp_path / "plugin"], check=True, capture_output=True)
    return tmp_path / "site"


@pytest.fixture
def recordings(tmp_path):
    """Return a folder with twelve recordings to train on and three to validate on."""
    for split, count in (("train", 12), ("val", 3)):
        folder = tmp_path / "recordings" / split
        folder.mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng(i).standard_normal(round(16_000 * (0.7, 2.0, 3.1, 5.4)[i % 4])) * 2000
            soundfile.write(folder / f"{i:02d}.wav", noise.astype(np.int16), 16_000)
            (folder / f"{i:02d}.txt").write_text(f"number {i}")
    return tmp_path / "recordings"


@pytest.fixture
def fastslm(site):
    """Return a runner of the command beside the plug-in."""

    def run(*words, check=True):
        path = os.pathsep.join([os.path.dirname(__file__), str(site)])
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "fastslm", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize(("batch", "flags"), [(4, []), (9, ["--trainer.accumulate_grad_batches", "2"])])
def test_a_killed_run_goes_on_to_the_weights_of_one_that_was_not(
    fastslm, run_config, recordings, tmp_path, batch, flags
):
    assert re.search(r"^  FolderSource +fastslm-folder-source 0\.4", fastslm("plugins").stdout, re.MULTILINE)
    fit = ["fit", "--config", run_config, "--data", "FolderSource", "--data.folder", recordings, *flags]
    fit += ["--data.batch_samples", "2", "--trainer.val_check_interval", "4"]
    fit += ["--trainer.callbacks+=fastslm.callbacks.last_checkpoint.LastCheckpoint"]
    fit += ["--trainer.callbacks.every_n_train_steps=1"]
    whole = fastslm(*fit, "--run_folder", tmp_path / "whole")
    assert "WER" in whole.stdout

    kill = ["--trainer.callbacks+=killers.KillAt", f"--trainer.callbacks.batch={batch}"]
    killed = fastslm(*fit, "--run_folder", tmp_path / "parts", *kill, check=False)
    assert killed.returncode == -9, killed.stdout + killed.stderr
    fastslm(*fit, "--run_folder", tmp_path / "parts", "--ckpt_path", "last")
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


def test_other_recordings_are_refused_and_broken_ones_shown(fastslm, run_config, recordings):
    fit = ["fit", "--config", run_config, "--data", "FolderSource", "--data.folder", recordings]
    fit += ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1"]
    fastslm(*fit)
    (recordings / "train" / "00.txt").write_text("another word")
    refused = fastslm(*fit, "--ckpt_path", "last", check=False)
    assert refused.returncode == 2
    assert "the checkpoint was trained on other data: the plan hash differs" in refused.stderr
    assert "Traceback" not in refused.stderr
    (recordings / "train" / "00.txt").unlink()
    refused = fastslm(*fit, check=False)
    assert refused.returncode == 2
    assert "1 of 12 samples of train are broken, more than data.max_broken_share 0.05 allows" in refused.stderr
