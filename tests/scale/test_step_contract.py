"""Ranks with wildly different batches stay in step to the end, and hold the same weights."""

import json

import pytest
import yaml


@pytest.fixture
def uneven_config(run_config):
    config = yaml.safe_load(run_config.read_text())
    config["data"] = {"class_path": "uneven.Uneven", "init_args": {"steps": 50}}
    config["model"] |= {"alignment_weight": 0.5, "recompute": True}
    config["trainer"] |= {"max_steps": 50, "val_check_interval": 50}
    path = run_config.with_name("uneven.yaml")
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero2", "zero3", "ddp", "fsdp2"])
def test_fifty_steps_of_uneven_batches_end_with_the_same_weights(run_jobs, uneven_config, tmp_path, strategy):
    flags = {
        "zero2": ["--trainer.strategy", "ZeRORehearsal", "--trainer.strategy.stage", "2"],
        "zero3": ["--trainer.strategy", "ZeRORehearsal", "--trainer.strategy.stage", "3"],
        "ddp": ["--trainer.strategy", "ddp"],
        "fsdp2": ["--trainer.strategy", "FSDP2"],
    }[strategy]
    job = ["fit", "--config", str(uneven_config), "--trainer.devices", "2", "--watchdog_seconds", "600", *flags]
    run_jobs(2, [{"flags": job, "probe": str(tmp_path / "seen")}])
    first, second = (json.loads((tmp_path / f"seen-rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["steps"] == second["steps"] == list(range(1, 51))
    assert first["weights"] == second["weights"]
    assert first["losses"] == second["losses"]
    assert first["keys"] != second["keys"]  # they did see different batches


@pytest.mark.slow
def test_ranks_with_different_numbers_of_batches_are_refused_before_the_first_step(run_jobs, uneven_config):
    job = ["fit", "--config", str(uneven_config), "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = run_jobs(2, [{"flags": [*job, "--data.missing", "3", "--trainer.val_check_interval", "10"]}], check=False)
    for status, output in done:
        assert status == 2, output
        assert "50 on rank 0, 47 on rank 1" in output
        assert "trainer.limit_train_batches" in output
