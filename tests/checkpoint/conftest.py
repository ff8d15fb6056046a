"""A module with weights and a stand-in trainer, to save and load without training."""

from types import SimpleNamespace

import pytest
import torch

from fastslm.checkpoint.writer import write_checkpoint

CONFIG = {
    "run_folder": "runs/x",
    "model": {
        "abstractor": {"class_path": "AvgPool", "init_args": {}},
        "window_seconds": 2.0,
        "tokens_per_window": 4,
        "train_parts": ["projector"],
        "optimizer": {"learning_rate": 1e-3},
    },
    "trainer": {"max_steps": 10},
}


class Alone:
    """The strategy of one process."""

    def broadcast(self, value):
        return value

    def barrier(self, name=None):
        return None


def trainer_at(step, **metrics):
    return SimpleNamespace(
        is_global_zero=True,
        global_step=step,
        current_epoch=0,
        world_size=1,
        precision="32-true",
        strategy=Alone(),
        callback_metrics={name.replace("_", "/"): torch.tensor(value) for name, value in metrics.items()},
    )


@pytest.fixture
def built(make_module):
    """Return a maker of modules that have their weights and know their configuration."""

    def make(**settings):
        module = make_module(**settings)
        module.configure_model()
        changed = {name: value for name, value in settings.items() if name in CONFIG["model"]}
        module.run_config = {**CONFIG, "model": {**CONFIG["model"], **changed}}
        return module

    return make


@pytest.fixture
def save(tmp_path):
    """Return a saver: ``save(module, step)`` gives the folder that ``last`` leads to then."""

    def run(module, step=1, name="last", folder=None, write_state=None, **metrics):
        link = (folder or tmp_path / "checkpoints") / f"{name}.ckpt"
        state = {"state_dict": dict(module.state_dict()), "step": step, "optimizer_states": []}
        data = {"plan_hash": "0123456789abcdef", "epoch": 0, "step": step}
        write = write_state or (lambda path: torch.save(state, path))
        write_checkpoint(trainer_at(step, **metrics), module, link, data, write)
        return link.resolve().parent

    return run
