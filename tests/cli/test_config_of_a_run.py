"""A run's own ``config.yaml`` given to another command, which keeps out of that run's folder."""

import pytest
import yaml

from fastslm.training.command_line import TrainingCLI, command_line
from fastslm.training.history import read_history


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_other_commands_by_it_leave_the_run_as_it_was(run_config, tmp_path):
    steps = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]
    command_line(TrainingCLI, ["fit", "--config", str(run_config), *steps])
    run, before = tmp_path / "run", contents(tmp_path / "run")
    assert run / "metrics.csv" in before

    mine = ["--config", str(run / "config.yaml")]
    last = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    command_line(TrainingCLI, ["validate", *mine, *last, "--run_folder", str(tmp_path / "validated")])
    assert contents(run) == before
    command_line(TrainingCLI, ["fit", *mine, "--run_folder", str(tmp_path / "again")])
    assert contents(run) == before
    made = {path.relative_to(tmp_path / "again").as_posix() for path in contents(tmp_path / "again")}
    assert {"metrics.csv", "config.yaml", "checkpoints/last.ckpt"} <= made
    assert any(name.startswith("tensorboard/") for name in made)


@pytest.mark.slow
def test_validating_a_run_by_it_in_its_own_folder_keeps_its_metrics_and_configuration(run_config, tmp_path):
    command_line(TrainingCLI, ["fit", "--config", str(run_config), "--trainer.max_steps", "1"])
    files = [tmp_path / "run" / name for name in ("metrics.csv", "config.yaml")]
    before = [file.read_bytes() for file in files]
    command_line(TrainingCLI, ["validate", "--config", str(files[1]), "--model.max_new_tokens", "3"])
    assert [file.read_bytes() for file in files] == before
    assert yaml.safe_load((tmp_path / "run" / "config-validate.yaml").read_text())["model"]["max_new_tokens"] == 3


@pytest.mark.slow
def test_that_of_a_run_that_went_on_names_no_checkpoint(run_config, tmp_path, capsys):
    for steps, flags in ((1, []), (2, ["--ckpt_path", "last"])):
        command_line(TrainingCLI, ["fit", "--config", str(run_config), "--trainer.max_steps", str(steps), *flags])
    run = tmp_path / "run"
    for file in (run / "config.yaml", run / "checkpoints" / "last" / "config.yaml"):
        assert yaml.safe_load(file.read_text())["ckpt_path"] is None
    capsys.readouterr()
    command_line(TrainingCLI, ["validate", "--config", str(run / "config.yaml")])
    assert "step-000002 (step 2)" in capsys.readouterr().err


def test_rows_of_another_header_are_left_out_of_a_history(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,val/wer\n0,0.5\n1,0.25,7,9\n2\n3,0.125\n")
    assert read_history(tmp_path) == {"val/wer": [(0, 0.5), (3, 0.125)]}
