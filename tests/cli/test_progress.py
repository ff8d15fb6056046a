"""What a fit shows while it runs: the model's parts, and one bar over all steps."""

import csv
import re

import pytest

from fastslm.cli import main

SHOWN = ["--trainer.enable_progress_bar", "true", "--trainer.enable_model_summary", "true"]


def fit(run_config, *flags):
    assert main(["fit", "--config", str(run_config), *SHOWN, *flags]) == 0


def steps_shown(out):
    return [(int(n), int(total)) for n, total in re.findall(r"Step, epoch \d+: +\d+%\|[^|]*\| (\d+)/(\d+)", out)]


@pytest.mark.slow
def test_one_bar_counts_all_steps_and_a_resumed_run_goes_on_with_it(run_config, capsys):
    fit(run_config, "--trainer.max_steps", "8")
    out = capsys.readouterr().out
    assert {total for _, total in steps_shown(out)} == {8}
    assert [n for n, _ in steps_shown(out)] == sorted(n for n, _ in steps_shown(out))
    assert steps_shown(out)[-1] == (8, 8)
    assert "train/loss=" in out
    assert "v_num" not in out
    fit(run_config, "--trainer.max_steps", "10", "--ckpt_path", "last")
    resumed = steps_shown(capsys.readouterr().out)
    assert next(n for n, total in resumed if total == 10) >= 8
    assert resumed[-1] == (10, 10)


@pytest.mark.slow
def test_accumulated_batches_count_as_one_step(run_config, capsys):
    fit(run_config, "--trainer.max_steps", "3", "--trainer.accumulate_grad_batches", "2")
    assert steps_shown(capsys.readouterr().out)[-1] == (3, 3)


@pytest.mark.slow
def test_without_max_steps_the_bar_counts_batches_of_an_epoch(run_config, capsys):
    fit(run_config, "--trainer.max_steps", "-1", "--trainer.max_epochs", "1", "--model.optimizer.total_steps", "6")
    assert re.search(r"Epoch 0: 100%\|[^|]*\| 6/6", capsys.readouterr().out)


def test_the_table_shows_each_part_with_the_frozen_encoder_and_what_trains(run_config, capsys):
    fit(run_config, "--trainer.max_steps", "1")
    out = capsys.readouterr().out
    rows = {m[1]: (int(m[2].replace(",", "")), int(m[3].replace(",", "")))
            for m in re.finditer(r"^  (\w+) +(?:[A-Z]\w+ +)?([\d,]+) +([\d,]+)$", out, re.MULTILINE)}  # fmt: skip
    assert rows.keys() == {"encoder", "abstractor", "projector", "llm", "lora", "all"}
    assert rows["encoder"][0] > 0
    assert rows["encoder"][1] == rows["llm"][1] == 0
    assert rows["lora"][0] == rows["lora"][1] > 0
    for i in range(2):
        assert rows["all"][i] == sum(row[i] for part, row in rows.items() if part != "all")
    assert "FLOPs" not in out


@pytest.mark.slow
def test_a_bar_that_the_config_names_is_left_alone(run_config, capsys):
    fit(run_config, "--trainer.max_steps", "2", "--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar")
    assert "Epoch 0" in capsys.readouterr().out


def test_a_fit_prints_no_advertisements_and_no_bars_of_weights_to_a_log(run_config, capsys, caplog):
    fit(run_config, "--trainer.max_steps", "1", "--trainer.log_every_n_steps", "500")
    shown = "".join(capsys.readouterr()) + caplog.text
    assert "GPU available" in shown  # where a run computes
    for noise in ("Tip:", "Seed set to", "TPU", "Loading weights", "logging interval"):
        assert noise not in shown


def test_a_run_of_fewer_steps_than_a_logging_interval_is_logged_at_its_end(run_config, tmp_path):
    fit(run_config, "--trainer.max_steps", "2", "--trainer.log_every_n_steps", "500")
    with open(tmp_path / "run" / "metrics.csv") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == ["1"]
