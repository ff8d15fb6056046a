"""Going on from a checkpoint: with the same strategy exactly, also on another number of processes."""

from pathlib import Path
from typing import Any

import lightning as L

from fastslm.checkpoint import facts
from fastslm.checkpoint.reader import Checkpoint
from fastslm.checkpoint.universal import UNIVERSAL_STATE, make_universal
from fastslm.errors import CheckpointError


def prepare_resume(trainer: L.Trainer, checkpoint: Checkpoint) -> Path:
    """Return the trainer state to go on from; under DeepSpeed on another number of processes it is converted first.

    Raises:
        CheckpointError: another strategy wrote it.
    """
    state = checkpoint.trainer_state
    assert state is not None
    if checkpoint.is_plain:
        return state
    stored, present = str(checkpoint.manifest["strategy"]), facts.strategy_kind(trainer.strategy)
    if stored != present:
        raise CheckpointError(
            f"{checkpoint.path} was saved under the strategy {stored!r}, and this run has {present!r}: the optimizer's"
            " state cannot go from one to the other. Use the same strategy, or start a new run from the weights"
            f" with --init_from {checkpoint.path}."
        )
    if not present.startswith("deepspeed") or checkpoint.manifest["world_size"] == trainer.world_size:
        return state
    universal = checkpoint.path / UNIVERSAL_STATE
    trainer.callbacks.insert(0, _Converted(state, universal))  # type: ignore[attr-defined]
    return universal


class _Converted(L.Callback):
    """Makes DeepSpeed's universal checkpoint when the processes are connected, and has it loaded.

    At stage 3 DeepSpeed gives every parameter group the settings of the first when it loads one: name, rate, decay.
    They are put right before the first step.

    Args:
        state: DeepSpeed's folder, written by another number of processes.
        universal: where the universal one goes.
    """

    def __init__(self, state: Path, universal: Path) -> None:
        self.state, self.universal = state, universal
        self._settings: list[dict[str, Any]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Convert on rank 0 while the others wait."""
        problem = None
        if trainer.is_global_zero:
            try:
                make_universal(self.state, self.universal)
            except CheckpointError as error:
                problem = str(error)
        problem = trainer.strategy.broadcast(problem)
        if problem is not None:
            raise CheckpointError(problem)
        config: dict[str, Any] = trainer.strategy.config  # type: ignore[attr-defined]
        config.setdefault("checkpoint", {})["load_universal"] = True

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the settings of the parameter groups; the checkpoint is loaded after this."""
        self._settings = [
            {name: value for name, value in group.items() if name != "params"} for group in _groups(trainer)
        ]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give each group its own settings back, and the rate at which the schedule stands."""
        rates = trainer.lr_scheduler_configs[0].scheduler.get_last_lr()
        for group, settings, rate in zip(_groups(trainer), self._settings, rates, strict=True):
            group.update(settings, lr=rate)


def _groups(trainer: L.Trainer) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = trainer.lr_scheduler_configs[0].scheduler.optimizer.param_groups
    return groups
