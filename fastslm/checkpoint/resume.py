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
    if not checkpoint.manifest:
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

    Args:
        state: DeepSpeed's folder, written by another number of processes.
        universal: where the universal one goes.
    """

    def __init__(self, state: Path, universal: Path) -> None:
        self.state, self.universal = state, universal

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
