"""SpecAugment from the command line: the option, its exclusion, other losses, and the same ones after a kill."""

import json

import pytest

from fastslm.cli import main

FLAGS = ["--model.spec_augment.time_masks", "4", "--model.spec_augment.time_width", "0.3"]


def losses(path):
    return {row["batch"]: row["loss"] for row in map(json.loads, path.read_text().splitlines())}


def recorder(path):
    return [
        "--trainer.callbacks+=killers.Record",
        f"--trainer.callbacks.path={path}",
        "--trainer.callbacks+=fastslm.callbacks.last_checkpoint.LastCheckpoint",
        "--trainer.callbacks.every_n_train_steps=1",
    ]


def test_the_frame_cache_is_refused_beside_it_with_the_way_out(run_config, capsys):
    assert main(["fit", "--config", str(run_config), *FLAGS, "--model.frame_cache", "true"]) == 2
    message = capsys.readouterr().err
    assert "model.spec_augment" in message
    assert "Set model.frame_cache to false" in message
    assert "Traceback" not in message


@pytest.mark.slow
def test_a_killed_run_hides_the_same_places_when_it_goes_on(fastslm, run_config, tmp_path):
    fit = ["fit", "--config", str(run_config), "--model.llm.lora.dropout", "0"]
    fastslm(*fit, "--run_folder", str(tmp_path / "plain"), *recorder(tmp_path / "plain.jsonl"))
    fastslm(*fit, *FLAGS, "--run_folder", str(tmp_path / "whole"), *recorder(tmp_path / "whole.jsonl"))
    parts = [*fit, *FLAGS, "--run_folder", str(tmp_path / "parts"), *recorder(tmp_path / "parts.jsonl")]
    kill = ["--trainer.callbacks+=killers.KillAt", "--trainer.callbacks.batch=7", "--trainer.callbacks.when=end"]
    assert fastslm(*parts, *kill, check=False).returncode == -9
    fastslm(*parts, "--ckpt_path", "last")
    whole = losses(tmp_path / "whole.jsonl")
    assert losses(tmp_path / "parts.jsonl") == pytest.approx(whole, rel=1e-5)
    assert losses(tmp_path / "plain.jsonl") != pytest.approx(whole, rel=1e-3)
