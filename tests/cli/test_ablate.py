"""fastslm ablate on tiny models: rows, report, kills and failures."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from fastslm.cli import main
from fastslm.metrics import ErrorRate
from fastslm.path.flops import count_flops
from fastslm.plugins import discover

#: Differ from one time to the next, unlike everything else of a row.
MEASURED = ("audio_seconds_per_second", "peak_memory_gib")


@pytest.fixture
def ablate(run_config, tmp_path):
    """Return a runner of ``fastslm ablate`` of a two-step configuration, in a process of its own."""
    config = yaml.safe_load(run_config.read_text())
    config["trainer"] |= {"max_steps": 2, "val_check_interval": 2}
    run_config.write_text(yaml.safe_dump(config))
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), "HF_HUB_OFFLINE": "1"}

    def start(*flags, out="out"):
        command = [sys.executable, "-m", "fastslm", "ablate", "--config", str(run_config), "--out", str(tmp_path / out)]
        return subprocess.Popen(
            [*command, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,  # so that it can be killed with all that it started
        )

    def run(*flags, out="out", status=0):
        process = start(*flags, out=out)
        try:
            shown, _ = process.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == status, shown
        return shown

    run.start, run.environment = start, environment
    return run


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return {(row["variant"], row["seed"]): row for row in rows}


def repeatable(rows):
    return {name: {key: value for key, value in row.items() if key not in MEASURED} for name, row in rows.items()}


POOLING = ("--variant", "AvgPool", "--model.abstractor=AvgPool")


@pytest.mark.slow
def test_variants_and_seeds_become_rows_a_table_and_plots(ablate, tmp_path):
    variants = tmp_path / "variants.yaml"
    variants.write_text('HTA: []\nAvgPool: ["--model.abstractor=AvgPool"]\nBroken: ["--model.tokens_per_window=101"]\n')
    flags = ("--variants", str(variants), "--seeds", "0", "1", "--cache-encoder")
    ablate.environment["XDG_CACHE_HOME"] = str(tmp_path / "user-cache")
    shown = ablate(*flags, status=1)
    out = tmp_path / "out"
    rows = rows_of(out)
    assert list(rows) == [("HTA", 0), ("AvgPool", 0), ("HTA", 1), ("AvgPool", 1)]
    for (variant, _), row in rows.items():
        assert row["abstractor_parameters"] == (32 * 32 + 32 if variant == "AvgPool" else row["abstractor_parameters"])
        assert row["path_flops_per_audio_second"] > row["abstractor_flops_per_audio_second"] > 0
        assert row["tokens_per_second"] == pytest.approx((2 + 9 + 2) / 6.2)  # 1.0, 4.2, 1.0 s; 4 tokens for 2 s
        assert row["audio_seconds_per_second"] > 0
        assert row["peak_memory_gib"] > 0.1
        assert [recording["words"] for recording in row["recordings"]] == [2, 2, 2]  # "number 0"
        predictions = out / row["run_folder"] / "predictions-val.jsonl"
        pairs = [(p["reference"], p["hypothesis"]) for p in map(json.loads, predictions.read_text().splitlines())]
        assert row["wer"] == pytest.approx(ErrorRate("word").over(*zip(*pairs, strict=True)))
        assert (out / row["learning_curve"]).exists()
    assert list((tmp_path / "user-cache" / "fastslm" / "frames").iterdir())
    for data in ("training_data", "validation_data"):  # of what the shards hold, whatever reads them
        assert len({row[data] for row in rows.values()} - {None}) == 1
    report = (out / "report.md").read_text()
    for expected in ("| HTA | 2 |", "| AvgPool | 2 |", "wer_tokens.png", "wer_compute.png", "learning_curves.png"):
        assert expected in report
    for text in (report.partition("Failed runs")[2], shown):
        assert "Broken seed 0" in text
        assert "101 tokens cannot be made of the 100 encoder frames" in text
    assert "| Broken |" not in report
    for name in ("wer_tokens.png", "wer_compute.png", "learning_curves.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"

    for name in ("results.jsonl", "report.md", "wer_tokens.png"):
        (out / name).unlink()
    assert main(["ablate", "--out", str(out), "--report-only"]) == 1  # a run failed
    assert rows_of(out) == rows
    assert (out / "report.md").read_text() == report

    refused = ablate(*flags, "--trainer.max_steps=3", status=2)
    assert "trainer.max_steps was 2, is 3" in refused


@pytest.mark.slow
def test_a_repetition_skips_what_has_finished_and_a_job_runs_its_share(ablate, tmp_path):
    flags = (*POOLING, "--seeds", "3", "4", "--job", "1/2")
    assert "AvgPool seed 3: WER" in ablate(*flags)
    row = tmp_path / "out" / "AvgPool" / "seed-3.json"
    written = row.stat().st_mtime_ns
    shown = ablate(*flags)
    assert "finished earlier" in shown
    assert row.stat().st_mtime_ns == written
    assert list(rows_of(tmp_path / "out")) == [("AvgPool", 3)]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "AvgPool seed 4" in report.partition("not finished")[2]


@pytest.mark.slow
def test_a_run_that_ends_between_validations_is_evaluated_at_its_end(ablate, tmp_path):
    ablate(*POOLING, "--trainer.max_steps=3")
    row = rows_of(tmp_path / "out")["AvgPool", 0]
    assert row["step"] == 3
    assert "fastslm validate" in (tmp_path / "out" / "AvgPool" / "seed-0.log").read_text()
    assert sum(recording["errors"] for recording in row["recordings"]) / 6 == pytest.approx(row["wer"])


def slow(seconds):
    return [
        "--trainer.callbacks+=killers.Slow",
        f"--trainer.callbacks.seconds={seconds}",
        "--trainer.callbacks+=fastslm.callbacks.last_checkpoint.LastCheckpoint",
        "--trainer.callbacks.every_n_train_steps=1",
    ]


@pytest.mark.slow
def test_killed_at_any_time_and_repeated_it_gives_the_same_rows(ablate, tmp_path):
    flags = (*POOLING, "--variant", "HTA", "", *slow(1.0), "--trainer.max_steps=4", "--trainer.val_check_interval=4")
    ablate(*flags, out="whole")
    for seconds in (6.0, 9.0, 12.0, 15.0, 18.0):
        process = ablate.start(*flags)
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    ablate(*flags)
    assert repeatable(rows_of(tmp_path / "out")) == repeatable(rows_of(tmp_path / "whole"))


@pytest.mark.slow
def test_training_that_outlives_a_killed_command_is_waited_for(ablate, tmp_path):
    go_on = tmp_path / "go-on"
    flags = (*POOLING, *slow(0.0), "--trainer.callbacks+=killers.Hold", f"--trainer.callbacks.path={go_on}")
    process = ablate.start(*flags)
    wait_for(tmp_path / "out" / "AvgPool" / "seed-0" / "checkpoints" / "last.ckpt")
    process.kill()
    process.wait()
    again = ablate.start(*flags)
    shown = next(line for line in again.stdout if "AvgPool seed 0" in line)
    assert "still running elsewhere, waiting for it" in shown
    go_on.touch()
    again.communicate(timeout=900)
    assert again.returncode == 0
    assert list(rows_of(tmp_path / "out")) == [("AvgPool", 0)]
    assert (tmp_path / "out" / "AvgPool" / "seed-0.log").read_text().count("fastslm fit") == 1


@pytest.mark.slow
def test_one_that_starts_from_a_runs_own_configuration_leaves_that_run_as_it_is(ablate, run_config, tmp_path):
    assert main(["fit", "--config", str(run_config)]) == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    before = sorted(path.stat().st_mtime_ns for path in checkpoints.rglob("*"))
    ablate("--config", str(tmp_path / "run" / "config.yaml"), *POOLING)
    assert len(rows_of(tmp_path / "out")) == 1
    assert sorted(path.stat().st_mtime_ns for path in checkpoints.rglob("*")) == before
    assert (tmp_path / "out" / "AvgPool" / "seed-0" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
def test_killed_between_training_and_its_record_it_is_evaluated_again(ablate, tmp_path):
    ablate(*POOLING, out="whole")
    marker = f"--trainer.callbacks.marker={tmp_path / 'killed'}"
    flags = (*POOLING, "--trainer.callbacks+=killers.KillOnceAtEnd", marker)
    assert "fastslm fit was ended by signal 9" in ablate(*flags, status=1)
    ablate(*flags)
    assert repeatable(rows_of(tmp_path / "out")) == repeatable(rows_of(tmp_path / "whole"))
    assert "Failed" not in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_on_two_ranks_each_recording_counts_once(ablate, tmp_path):
    ablate(*POOLING, "--trainer.devices=2")
    row = rows_of(tmp_path / "out")["AvgPool", 0]
    assert [recording["key"] for recording in row["recordings"]] == ["val-000", "val-001", "val-002"]
    assert row["num_processes"] == 2
    assert row["abstractor_parameters"] == 32 * 32 + 32


def wait_for(path):
    deadline = time.monotonic() + 600
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists()


def children_of(pid):
    return [int(child) for child in open(f"/proc/{pid}/task/{pid}/children").read().split()]


@pytest.mark.slow
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to-it", "to-its-group"])
def test_sigterm_ends_training_too_and_says_how_to_go_on(ablate, tmp_path, send):
    process = ablate.start(*POOLING, *slow(1.0), "--trainer.max_steps=60", "--trainer.val_check_interval=60")
    wait_for(tmp_path / "out" / "AvgPool" / "seed-0" / "checkpoints" / "last.ckpt")
    training = children_of(process.pid)
    send(process.pid, signal.SIGTERM)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The same command goes on from here" in shown
    assert "stopped by a signal after step" in next((tmp_path / "out").rglob("*.log")).read_text()
    assert training
    assert not any(os.path.exists(f"/proc/{pid}") for pid in training)


@pytest.mark.slow
def test_a_mistake_in_any_variant_is_named_before_the_first_run(ablate, tmp_path):
    shown = ablate(*POOLING, "--variant", "Typo", "--model.abstractor=AvgPol", status=2)
    assert "variant 'Typo'" in shown
    assert "'AvgPool'" in shown
    assert not list((tmp_path / "out").glob("*/seed-*"))


INSTALLED = {plugin.name: plugin.loaded for plugin in discover() if plugin.kind == "abstractors"}


@pytest.mark.parametrize("name", INSTALLED)
def test_flops_of_every_compressor_are_counted_and_what_trains_still_trains(make_module, name):
    module = make_module(abstractor=INSTALLED[name], train_parts=("abstractor", "projector"))
    module.configure_model()
    trained = [name for name, parameter in module.path.named_parameters() if parameter.requires_grad]
    assert count_flops(module.path).abstractor > 0
    assert [name for name, parameter in module.path.named_parameters() if parameter.requires_grad] == trained


def test_flops_are_those_of_the_layers_counted_by_hand(make_module):
    module = make_module()
    module.configure_model()
    path = module.path.train()
    # 30 windows of 2 s with 4 tokens of width 32, projected to 32.
    flops = count_flops(path)
    assert flops.abstractor == 2 * 4 * 32 * 32 / 2.0
    attention = 2 * 2 * (2 * 100 * 100 * 32) / 2.0  # two layers, two products, all heads together
    assert flops.path > flops.abstractor + attention
    assert path.training
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The encoder counted alone, its attention taken apart by hand: what is left is matrices and convolutions.
    with torch.no_grad(), FlopCounterMode(display=False) as fused:
        path.encoder._encode(torch.zeros(1, 80, 200))
    with torch.no_grad(), FlopCounterMode(display=False) as plain, sdpa_kernel(SDPBackend.MATH):
        path.encoder._encode(torch.zeros(1, 80, 200))
    matrices = 2 * (4 * 100 * 32 * 32 + 2 * 100 * 32 * 64) * 2 + 2 * 200 * 32 * 80 * 3 + 2 * 100 * 32 * 32 * 3
    assert plain.get_total_flops() == matrices + attention * 2.0
    assert fused.get_total_flops() <= plain.get_total_flops()


@pytest.mark.slow
def test_commands_that_were_typed_reach_the_runs_and_those_of_a_file_none(ablate, tmp_path, run_config):
    tars = sorted((tmp_path / "data").glob("train-*.tar"))
    commands = [f"pipe:cat '{tar}' # a: 'ü'" for tar in tars]
    shards = "--data.train_shards=" + json.dumps(commands)
    flags = ("--variant", "AvgPool", "--model.abstractor=AvgPool", "--data.stream_steps=2")
    ablate(*flags, shards)
    assert [row["status"] for row in rows_of(tmp_path / "out").values()] == ["finished"]
    assert rows_of(tmp_path / "out")["AvgPool", 0]["training_data"]  # of a stream the names
    config = yaml.safe_load(run_config.read_text())
    config["data"]["init_args"]["train_shards"] = f"pipe:touch {tmp_path}/mark"
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump({"data": config["data"]}))
    (tmp_path / "variants.yaml").write_text(yaml.safe_dump({"A": [f"--data.train_shards=pipe:touch {tmp_path}/mark"]}))
    for given in (("--config", str(tmp_path / "theirs.yaml"), *flags), ("--variants", str(tmp_path / "variants.yaml"))):
        shown = ablate(*given, out="other", status=2)
        assert "is a command in a configuration file" in shown
    assert not (tmp_path / "mark").exists()
