"""One model, many rates: trained with a list of tokens per window, and run at any of them by one flag."""

import csv

import pytest
import yaml

from fastslm.cli import main


@pytest.fixture
def refused(run_config, capsys):
    """Return a function that trains, which must be refused in a sentence, and gives it."""

    def fit():
        assert main(["fit", "--config", str(run_config)]) == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return message

    return fit


def train_at(run_config, *rates):
    config = yaml.safe_load(run_config.read_text())
    config["model"]["tokens_per_window"] = list(rates)
    config["model"]["abstractor"]["init_args"]["queries_per_stage"] = 5
    run_config.write_text(yaml.safe_dump(config))


def rates_of(folder):
    with open(folder / "metrics.csv") as file:
        rows = [row["rate/speech_tokens_per_second"] for row in csv.DictReader(file)]
    return [float(rate) for rate in rows if rate]


@pytest.mark.slow
def test_a_list_trains_at_all_rates_and_a_flag_chooses_one(fastslm, run_config, tmp_path):
    train_at(run_config, 4, 2, 10)
    fastslm("fit", "--config", str(run_config))
    # Windows of 2 s: 1, 2 and 5 tokens per second, and a little more where a tail is rounded up.
    seen = {min((1, 2, 5), key=lambda rate: abs(rate - shown)) for shown in rates_of(tmp_path / "run")}
    assert seen == {1, 2, 5}

    losses = {}
    for rate in (None, 4, 2, 10, 7):  # 7 was never trained at
        flags = [] if rate is None else ["--model.tokens_per_window", str(rate)]
        done = fastslm("validate", "--config", str(run_config), "--ckpt_path", "last", *flags)
        losses[rate] = next(line for line in done.stdout.splitlines() if "WER" in line)
    assert losses[None] == losses[4]
    assert len(set(losses.values())) == 4


@pytest.mark.slow
def test_an_optimizer_step_has_one_rate_however_it_is_accumulated(run_config, tmp_path):
    train_at(run_config, 4, 2, 10)
    found = []
    for batch, accumulated in (("4", "1"), ("2", "2")):
        folder = tmp_path / batch
        flags = ["--data.batch_samples", batch, "--trainer.accumulate_grad_batches", accumulated]
        assert main(["fit", "--config", str(run_config), "--run_folder", str(folder), *flags]) == 0
        found.append(rates_of(folder))
    assert len({round(rate) for rate in found[0]}) == 3
    assert found[1] == pytest.approx(found[0])


def test_a_compressor_with_weights_for_one_rate_is_refused_before_training(run_config, refused):
    train_at(run_config, 4, 2)
    config = yaml.safe_load(run_config.read_text())
    config["model"]["abstractor"] = {"class_path": "Conv"}
    run_config.write_text(yaml.safe_dump(config))
    assert "Conv has weights for 4 tokens only, and cannot give 2" in refused()


@pytest.mark.parametrize("rates", [[], [4, 0], [4, 101]])
def test_rates_that_cannot_be_met_are_refused(run_config, refused, rates):
    train_at(run_config, *rates)
    assert "model.tokens_per_window" in refused()
