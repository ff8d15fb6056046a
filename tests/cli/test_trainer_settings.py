"""What the ``trainer`` part of a configuration may say: it works, or is one sentence before the first step."""

import functools
import importlib.util
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerState

from fastslm.checkpoint import open_checkpoint
from fastslm.cli import main
from fastslm.errors import ConfigError
from fastslm.training.callback_checks import check_callbacks
from fastslm.training.startup_checks import check_request


@pytest.fixture
def fit(run_config, capsys):
    """Return a runner of a short fit: gives its exit status and what it said."""

    def run(*flags):
        short = ("--trainer.max_steps", "2", "--trainer.val_check_interval", "2")
        status = main(["fit", "--config", str(run_config), *short, *flags])
        return status, capsys.readouterr().err

    return run


@pytest.fixture
def refused(fit, tmp_path):
    """Return a runner of a fit that must be refused before its first step; gives the sentence."""

    def run(*flags):
        status, said = fit(*flags)
        assert status == 2, said
        assert "Traceback" not in said
        assert not list(tmp_path.glob("run/checkpoints/*"))
        line = next(line for line in said.splitlines() if line.startswith("fastslm: error:"))
        assert len(line) < 700
        return line

    return run


def listed(tmp_path, *callbacks):
    path = tmp_path / "callbacks.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": list(callbacks)}}))
    return ["--config", str(path)]


EARLY = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/error", "patience": 1}}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--trainer.barebones", "true"], ["trainer.barebones", "trainer.logger"]),
        (["--trainer.overfit_batches", "1"], ["trainer.overfit_batches", "data.train_shards"]),
        (["--trainer.overfit_batches", "0.5"], ["trainer.overfit_batches"]),
        (["--trainer.limit_train_batches", "0"], ["trainer.limit_train_batches: 0 trains nothing"]),
        (["--trainer.limit_val_batches", "0.1"], ["limit_val_batches"]),
        (["--trainer.log_every_n_steps", "0"], ["trainer.log_every_n_steps: 0 must be at least 1"]),
        (["--trainer.val_check_interval", "0"], ["trainer.val_check_interval: 0 must be above 0", "limit_val_batches"]),
        (["--trainer.gradient_clip_val", "-1"], ["trainer.gradient_clip_val: -1 must be at least 0"]),
        (["--trainer.check_val_every_n_epoch", "0"],
         ["trainer.check_val_every_n_epoch: 0 must be at least 1", "trainer.limit_val_batches"]),
        (["--trainer.precision", "64"], ["trainer.precision is 64-true", "Use 32-true"]),
        (["--trainer.strategy", "ddp_spawn"], ["trainer.strategy: ddp_spawn", "Use ddp"]),
        (["--trainer.strategy", "DDPStrategy", "--trainer.strategy.start_method", "spawn"], ["spawn", "Use ddp"]),
        (["--trainer.strategy", "ddp_fork", "--trainer.devices", "2"], ["trainer.strategy: ddp_fork", "Use ddp"]),
        (["--trainer.strategy", "ddp_notebook_find_unused_parameters_true"], ["ddp_notebook", "Use ddp"]),
        (["--trainer.strategy", "DDPStrategy", "--trainer.strategy.start_method", "fork"],
         ["trainer.strategy: DDPStrategy (start method fork)", "Use ddp"]),
        (["--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.every_n_train_steps", "0"],
         ["LastCheckpoint.every_n_train_steps: 0 must be at least 1"]),
        (["--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.every_n_minutes", "-1"],
         ["LastCheckpoint.every_n_minutes: -1 must be 0 or more"]),
        (["--watchdog_seconds", "-1"], ["watchdog_seconds: -1 must be 0 or more"]),
        (["--trainer.plugins", "AsyncCheckpointIO"], ["trainer.plugins: AsyncCheckpointIO", "Leave it out"]),
        (["--trainer.profiler", "simpel"], ["profiler", "'simple'"]),
        (["--trainer.gradient_clip_algorithm", "median"], ["gradient_clip_algorithm", "median", "norm"]),
        (["--trainer.accelerator", "cuda9"], ["accelerator", "cuda9"]),
        (["--trainer.devices", "0"], ["devices='0'"]),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val_loss"],
         ["EarlyStopping waits for 'val_loss'", "Did you mean 'val/loss'?"]),
        (["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor", "wer"],
         ["ModelCheckpoint waits for 'wer'", "val/error"]),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "train/los"],
         ["EarlyStopping waits for 'train/los'", "Did you mean 'train/loss'?"]),
        (["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor", "val/chrf"],
         ["ModelCheckpoint.mode: min takes the worst val/chrf for the best, since higher is better. Set mode: max."]),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/wer/de",
          "--trainer.callbacks.mode", "max"],
         ["EarlyStopping.mode: max takes the worst val/wer/de", "lower is better. Set mode: min."]),
        (["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "0.001"],
         ["StochasticWeightAveraging", "model.optimizer.schedule"]),
        (["--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging"], ["EMAWeightAveraging"]),
        (["--trainer.callbacks+=LearningRateFinder"], ["model.optimizer.learning_rate"]),
        (["--trainer.callbacks+=BatchSizeFinder"], ["data.batch_samples"]),
        (["--trainer.callbacks+=BackboneFinetuning"], ["model.train_parts"]),
        (["--trainer.callbacks+=OnExceptionCheckpoint", "--trainer.callbacks.dirpath", "saved"],
         ["OnExceptionCheckpoint", "goes on from", "LastCheckpoint"]),
        (["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath", "/proc/nothing"],
         ["ModelCheckpoint.dirpath: /proc/nothing cannot be written"]),
        (["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath", "/tmp/best"],
         ["ModelCheckpoint.dirpath: /tmp/best is not ", "/run/checkpoints, where --ckpt_path looks"]),
        (["--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.dirpath", "run/last"],
         ["LastCheckpoint.dirpath: ", "/run/last is not ", "/run/checkpoints, where --ckpt_path looks"]),
        (["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor", "val/loss",
          "--trainer.callbacks.filename", "best-{step}", "--trainer.callbacks.auto_insert_metric_name", "false",
          "--trainer.callbacks.enable_version_counter", "false"],
         ["ModelCheckpoint.filename: another one saves as best-{step} as well", "best-loss-{step}"]),
        (["--trainer.callbacks+=RichProgressBar"], ["RichProgressBar"]),
        (["--model.llm.lora.target_modules", "[q_proj]"],
         ["model.llm.lora: unknown argument 'target_modules'. Did you mean 'targets'?"]),
        (["--model.llm.lora.r", "8"], ["model.llm.lora", "Did you mean 'rank'?"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)  # fmt: skip
def test_a_setting_that_cannot_work_is_one_sentence_before_the_first_step(refused, flags, words):
    message = refused(*flags)
    for word in words:
        assert word in message


@pytest.mark.parametrize("monitor", ["val/chrf", "train/los"])
def test_what_callbacks_wait_for_is_asked_of_a_fit_and_not_of_the_evaluation_of_an_earlier_run(monitor):
    waits = ModelCheckpoint(monitor=monitor, mode="min")
    trainer = SimpleNamespace(callbacks=[waits], checkpoint_callbacks=[waits], state=TrainerState(fn="validate"))
    check_callbacks(trainer)
    trainer.state = TrainerState(fn="fit")
    with pytest.raises(ConfigError, match=monitor):
        check_callbacks(trainer)


@pytest.mark.parametrize("logger", ["WandbLogger", "MLFlowLogger", "CometLogger"])
def test_a_logger_whose_package_is_missing_says_which_to_install(refused, logger):
    package = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "CometLogger": "comet_ml"}[logger]
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    message = refused("--trainer.logger", logger)
    assert f"trainer.logger: {logger} cannot be made: " in message
    assert package.replace("_", "-") in message.replace("_", "-")


def test_the_callbacks_of_every_run_stay_beside_a_list_of_the_user(fit, tmp_path):
    status, said = fit(*listed(tmp_path, EARLY))
    assert status == 0, said
    assert "leaves out TokenRate, DataHealth, RunReport, LastCheckpoint, ModelCheckpoint, LearningRateMonitor" in said
    folder = tmp_path / "run"
    for name in ("checkpoints/last.ckpt", "checkpoints/best-2.ckpt", "predictions-val.jsonl", "training.png"):
        assert (folder / name).exists(), name
    names = [
        c["class_path"].rpartition(".")[2]
        for c in yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["callbacks"]
    ]
    assert names[-1] == "EarlyStopping"
    assert len(names) == 7


@pytest.mark.slow
def test_one_of_them_that_the_user_names_is_the_users(fit, tmp_path):
    best = {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/loss", "save_top_k": 1, "filename": "mine"}}
    status, said = fit(
        *listed(tmp_path, best, {"class_path": "LastCheckpoint", "init_args": {"every_n_train_steps": 1}})
    )
    assert status == 0, said
    assert "ModelCheckpoint" not in next(line for line in said.splitlines() if "leaves out" in line)
    assert [link.stem for link in (tmp_path / "run" / "checkpoints").glob("*.ckpt")].count("mine") == 1
    assert not list(tmp_path.glob("run/checkpoints/best*"))


@pytest.mark.slow
def test_epochs_that_end_before_the_schedule_are_told(fit):
    epochs = ("--trainer.max_epochs", "1", "--trainer.max_steps", "100")
    status, said = fit(*epochs)
    assert status == 0, said
    assert "ends the run at step 6" in said
    assert "model.optimizer.total_steps to 6" in said
    assert "ends the run" not in fit(*epochs, "--model.optimizer.total_steps", "6")[1]


@pytest.mark.slow
def test_max_time_is_that_of_this_job(fit, tmp_path):
    assert fit("--trainer.max_steps", "1", "--trainer.max_time", "00:00:10:00")[0] == 0
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert state["callbacks"]["Timer"]["time_elapsed"]["train"] > 0
    state["callbacks"]["Timer"]["time_elapsed"]["train"] = 3600.0
    torch.save(state, tmp_path / "hour.ckpt")
    status, said = fit("--ckpt_path", str(tmp_path / "hour.ckpt"), "--trainer.max_time", "00:00:10:00")
    assert status == 0, said
    assert open_checkpoint(tmp_path / "run").manifest["step"] == 2


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--trainer.logger", "false"], ["checkpoints/best-2.ckpt", "checkpoints/last.ckpt"]),
        slow(["--trainer.enable_checkpointing", "false"], ["metrics.csv", "training.png"]),
        slow(["--trainer.val_check_interval", "0.5", "--trainer.max_steps", "3"], ["checkpoints/best-3.ckpt"]),
        (["--trainer.limit_val_batches", "0"], ["checkpoints/last.ckpt"]),
        slow(["--trainer.num_sanity_val_steps", "1"], ["checkpoints/best-2.ckpt"]),
        slow(["--trainer.callbacks+=Timer", "--trainer.callbacks.duration", "01:00:00:00"], ["config.yaml"]),
        (["--trainer.fast_dev_run", "true"], []),
    ],
    ids=lambda value: " ".join(value),
)
@pytest.mark.slow
def test_a_setting_that_can_work_does(fit, tmp_path, flags, kept):
    status, said = fit(*flags)
    assert status == 0, said
    for name in kept:
        assert (tmp_path / "run" / name).exists(), name


@pytest.mark.parametrize(
    ("package", "flags", "left"),
    [
        (
            "wandb",
            ["WandbLogger", "--trainer.logger.offline=true", "--trainer.logger.save_dir={}"],
            "wandb/offline-run-*/*.wandb",
        ),
        ("mlflow", ["MLFlowLogger", "--trainer.logger.tracking_uri=file:{}/mlruns"], "mlruns/*/*/metrics/val/loss"),
    ],
)
def test_a_logger_of_another_package_works_offline_and_leaves_ours_alone(
    fit, tmp_path, monkeypatch, package, flags, left
):
    pytest.importorskip(package)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    status, said = fit("--trainer.logger", *(flag.format(tmp_path) for flag in flags))
    assert status == 0, said
    assert list(tmp_path.glob(left))
    for name in ("metrics.csv", "config.yaml", "training.png"):
        assert (tmp_path / "run" / name).exists(), name


def test_a_trainer_of_a_script_is_told_the_same():
    trainer = L.Trainer(accelerator="cpu", overfit_batches=1, logger=False, enable_checkpointing=False)
    with pytest.raises(ConfigError, match=r"trainer\.overfit_batches: which samples"):
        check_request(trainer, {})
