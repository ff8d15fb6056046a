"""A run folder may be moved or copied: a run that goes on there knows which of its checkpoints are the best."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from fastslm.training.command_line import TrainingCLI, command_line
from fastslm.training.moved_run import MovedRun


def best_in(run):
    """Return a callback that keeps the two best checkpoints of a run folder."""
    return ModelCheckpoint(run / "checkpoints", monitor="val/loss", save_top_k=2)


@pytest.fixture
def state(tmp_path):
    """Return the state of such a callback after two validations, of a run that is moved after that."""
    callback = best_in(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("best-1.ckpt", "best-2.ckpt"):
        (folder / name).touch()
    callback.best_k_models = {str(folder / f"best-{n}.ckpt"): torch.tensor(float(n)) for n in (1, 2)}
    callback.best_model_path, callback.kth_best_model_path = callback.best_k_models
    callback.best_model_score, callback.kth_value = callback.best_k_models.values()
    (tmp_path / "run").rename(tmp_path / "moved")
    return callback.state_dict()


def go_on(state, run, loaded_from):
    callback = best_in(run)
    trainer = SimpleNamespace(callbacks=[callback], ckpt_path=loaded_from / "checkpoints" / "step-2" / "trainer.ckpt")
    checkpoint = {"callbacks": {callback.state_key: state}}
    MovedRun().on_load_checkpoint(trainer, None, checkpoint)
    callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
    return callback


@pytest.mark.filterwarnings("error")
def test_scores_go_with_a_run_folder_that_is_moved(state, tmp_path):
    moved = tmp_path / "moved"
    callback = go_on(state, moved, moved)
    assert callback.best_k_models == {str(moved / "checkpoints" / f"best-{n}.ckpt"): n for n in (1, 2)}
    assert callback.best_model_path == str(moved / "checkpoints" / "best-1.ckpt")
    assert callback.kth_best_model_path == str(moved / "checkpoints" / "best-2.ckpt")
    assert (callback.best_model_score, callback.kth_value) == (1.0, 2.0)


@pytest.mark.filterwarnings("error")
def test_scores_go_with_a_copy_that_left_out_the_links(state, tmp_path):
    moved = tmp_path / "moved"
    for name in ("best-1", "best-2"):
        (moved / "checkpoints" / f"{name}.ckpt").unlink()
        (moved / "checkpoints" / name).mkdir()
        (moved / "checkpoints" / name / "checkpoint.json").touch()
    callback = go_on(state, moved, moved)
    assert callback.best_model_path == str(moved / "checkpoints" / "best-1.ckpt")


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("case", ["the best is not there", "another run goes on from it"])
def test_scores_without_their_checkpoints_are_forgotten(state, tmp_path, case):
    moved = tmp_path / "moved"
    if case == "the best is not there":
        (moved / "checkpoints" / "best-1.ckpt").unlink()
    callback = go_on(state, moved if case == "the best is not there" else tmp_path / "other", moved)
    assert not callback.best_k_models


@pytest.mark.slow
def test_a_moved_run_keeps_its_best_checkpoint(run_config, tmp_path):
    def fit(run, steps, *flags):
        flags = ("--run_folder", str(run), "--trainer.max_steps", str(steps), "--trainer.val_check_interval=1", *flags)
        command_line(TrainingCLI, ["fit", "--config", str(run_config), "--model.optimizer.learning_rate=0", *flags])
        return [link.name for link in (run / "checkpoints").glob("best-*.ckpt")]

    assert fit(tmp_path / "run", 1) == ["best-1.ckpt"]
    (tmp_path / "run").rename(tmp_path / "moved")
    assert fit(tmp_path / "moved", 2, "--ckpt_path", "last") == ["best-1.ckpt"]
