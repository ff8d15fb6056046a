"""fit, validate, test, predict from the command line: results, checkpoints, and going on after a kill."""

import csv
import json

import pytest
import torch
import yaml

from fastslm.training.history import read_history


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def trained(path):
    """Return what was trained on, the last record of each batch."""
    return {row["batch"]: row for row in rows_of(path)}


def recorder(path, every=1):
    return [
        "--trainer.callbacks+=killers.Record",
        f"--trainer.callbacks.path={path}",
        "--trainer.callbacks+=fastslm.callbacks.last_checkpoint.LastCheckpoint",
        f"--trainer.callbacks.every_n_train_steps={every}",
    ]


def killer(batch, when):
    return [
        "--trainer.callbacks+=killers.KillAt",
        f"--trainer.callbacks.batch={batch}",
        f"--trainer.callbacks.when={when}",
    ]


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_a_fit_that_ends_between_two_validations_says_how_to_validate_its_end(fastslm, run_config):
    done = fastslm("fit", "--config", str(run_config), "--trainer.max_steps", "3", "--trainer.val_check_interval", "2")
    _, _, behind = done.stdout.partition("the last weights were not validated (val_check_interval is 2); to do it:\n")
    command = behind.split("\n")[0].split()
    assert command[:2] == ["fastslm", "validate"]
    assert "WER" in fastslm(*command[1:]).stdout


@pytest.mark.slow
def test_fit_prints_pairs_and_wer_and_says_where_everything_lies(fastslm, run_config, tmp_path):
    done = fastslm("fit", "--config", str(run_config))
    folder = tmp_path / "run"
    assert "reference   number" in done.stdout
    assert "WER" in done.stdout
    for name in ("training.png", "config.yaml", "metrics.csv", "checkpoints/last.ckpt", "predictions-val.jsonl"):
        assert (folder / name).stat().st_size > 0, name
    for shown in ("training.png", "last.ckpt", str(folder)):
        assert shown in done.stdout
    assert "were not validated" not in done.stdout
    assert sorted(row["key"] for row in rows_of(folder / "predictions-val.jsonl")) == ["val-000", "val-001", "val-002"]
    with open(folder / "metrics.csv") as file:
        columns = csv.DictReader(file).fieldnames
    assert {"train/loss", "val/loss", "val/wer", "val/cer", "rate/speech_tokens_per_second"} <= set(columns)

    check_token_rate(folder)
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    trained_parts = ("path.abstractor.", "path.alignment.")
    assert all(".lora_" in name or name.startswith(trained_parts) for name in checkpoint["state_dict"])
    assert checkpoint["fastslm_config"]["model"]["tokens_per_window"] == 4

    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["tokens_per_window"] == 4

    validated = fastslm("validate", "--config", str(run_config))
    tested = fastslm("test", "--config", str(run_config), "--ckpt_path", "last")
    wer = [line for line in done.stdout.splitlines() if "WER" in line][-1]
    assert wer in validated.stdout  # the same weights give the same figures
    assert wer in tested.stdout
    fastslm("predict", "--config", str(run_config), "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"))
    assert len(rows_of(folder / "predictions.jsonl")) == 3

    again = fastslm("fit", "--config", str(run_config), "--trainer.max_steps", "1", "--trainer.val_check_interval", "1")
    assert f"moved to {folder}.1" in again.stderr
    assert (tmp_path / "run.1" / "checkpoints" / "last.ckpt").exists()


def check_token_rate(folder):
    """Compare the first epoch's figures with those counted by hand."""
    with open(folder / "metrics.csv") as file:
        epochs = [row for row in csv.DictReader(file) if row["rate_epoch/speech_tokens_per_second"]]
    # Windows of 2 s have 100 frames and 4 tokens. 0.7 s: 35 frames, 2 tokens; 2.0 s: 4; 3.1 s: 4 + 3; 5.4 s: 8 + 3.
    assert float(epochs[0]["rate_epoch/speech_tokens_per_second"]) == pytest.approx(3 * 24 / (3 * 11.2), rel=1e-5)
    assert float(epochs[0]["rate_epoch/compression"]) == pytest.approx(50 * 11.2 / 24, rel=1e-5)
    seconds, flops = (float(epochs[0][f"rate_epoch/{name}_per_second"]) for name in ("audio_seconds", "model_flops"))
    # The encoder alone, for the 6 windows of those four, forward: most of this small path.
    window = 2 * 100 * (4 * 32**2 + 2 * 32 * 64 + 2 * 100 * 32)
    assert window * 6 / 11.2 < flops / seconds < 30 * window * 6 / 11.2


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--trainer.accumulate_grad_batches", "3"], ["--trainer.devices", "2"]], ids=str)
def test_the_token_rate_is_the_same_under_accumulation_and_on_two_ranks(fastslm, run_config, tmp_path, flags):
    fastslm("fit", "--config", str(run_config), "--trainer.max_steps", "4", "--trainer.val_check_interval", "2", *flags)
    check_token_rate(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [[], ["--trainer.accumulate_grad_batches", "2"], ["--trainer.devices", "2", "--data.batch_samples", "1"]],
    ids=str,
)
def test_the_token_rates_of_a_run_that_goes_on_are_those_of_one_that_was_not_stopped(
    fastslm, run_config, tmp_path, flags
):
    fit = ["fit", "--config", str(run_config), "--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "2"]
    fit += ["--data.batch_samples", "2", *flags]
    fastslm(*fit, "--trainer.max_steps", "4", "--run_folder", str(tmp_path / "whole"))
    for steps in ("3", "4"):  # the first ends between two steps that are logged
        fastslm(*fit, "--trainer.max_steps", steps, "--ckpt_path", "last")
    found = [
        {
            name: values[-1] if name.startswith("rate_epoch/") else values
            for name, values in read_history(folder).items()
            if name.endswith(("/compression", "/padding_share", "/speech_tokens_per_second"))
        }
        for folder in (tmp_path / "whole", tmp_path / "run")
    ]
    assert len(found[0]) == 6
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "when"), [(3, "end"), (7, "start")])
def test_a_killed_run_goes_on_to_the_same_weights(fastslm, run_config, tmp_path, batch, when):
    check_kill(fastslm, run_config, tmp_path, batch, when, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "when", "workers"),
    [(1, "start", "0"), (1, "end", "2"), (5, "end", "0"), (6, "end", "2"), (6, "start", "2"), (10, "end", "0")],
)
def test_a_run_killed_anywhere_goes_on_to_the_same_weights(fastslm, run_config, tmp_path, batch, when, workers):
    check_kill(fastslm, run_config, tmp_path, batch, when, ["--data.num_workers", workers])


WHOLE = {}  # runs that nobody killed, by their flags: folders that stay until the session ends


def check_kill(fastslm, run_config, tmp_path, batch, when, flags):
    parts = tmp_path / "parts"
    fit = ["fit", "--config", str(run_config), *flags]
    if (whole := WHOLE.get(tuple(flags))) is None:
        whole = WHOLE[tuple(flags)] = tmp_path / "whole"
        fastslm(*fit, "--run_folder", str(whole), *recorder(whole.with_suffix(".jsonl")))
    killed = fastslm(
        *fit, "--run_folder", str(parts), *recorder(tmp_path / "parts.jsonl"), *killer(batch, when), check=False
    )
    assert killed.returncode == -9
    fastslm(*fit, "--run_folder", str(parts), *recorder(tmp_path / "parts.jsonl"), "--ckpt_path", "last")

    expected, found = trained(whole.with_suffix(".jsonl")), trained(tmp_path / "parts.jsonl")
    assert list(found) == list(expected) == list(range(10))
    epochs = [[key for number in numbers for key in expected[number]["keys"]] for numbers in (range(6), range(6, 10))]
    assert sorted(epochs[0]) == [f"train-{i:03d}" for i in range(12)]
    assert epochs[1] != epochs[0][:8]  # each epoch has an order of its own
    for number, row in expected.items():
        assert found[number]["keys"] == row["keys"]
        assert found[number]["loss"] == pytest.approx(row["loss"], rel=1e-5)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-5, atol=1e-7)
    for name in ("rate_epoch/compression", "rate_epoch/padding_share", "rate/compression"):
        assert read_history(parts)[name] == read_history(whole)[name]


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused_with_what_differs(fastslm, run_config):
    fastslm("fit", "--config", str(run_config), "--trainer.max_steps", "1", "--trainer.val_check_interval", "1")
    swapped = fastslm("validate", "--config", str(run_config), "--model.abstractor", "AvgPool", check=False)
    assert swapped.returncode == 2
    assert "does not fit this model" in swapped.stderr
    assert "unexpected: path.abstractor." in swapped.stderr
    assert "Traceback" not in swapped.stderr
    other_rank = fastslm("validate", "--config", str(run_config), "--model.llm.lora.rank", "3", check=False)
    assert other_rank.returncode == 2
    assert "of another shape" in other_rank.stderr


@pytest.mark.slow
def test_resuming_on_other_data_is_refused_with_the_way_out(fastslm, run_config):
    steps = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1"]
    fastslm("fit", "--config", str(run_config), *steps)
    other = fastslm("fit", "--config", str(run_config), "--ckpt_path", "last", "--data.batch_samples", "3", check=False)
    assert other.returncode == 2
    assert "plan hash differs" in other.stderr
    assert "Traceback" not in other.stderr
