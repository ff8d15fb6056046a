"""LastCheckpoint: keeps ``last.ckpt`` no more than some steps or minutes old, and equal to the model at the end."""

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from fastslm.errors import ConfigError
from fastslm.path.batch import Batch, ends_step


class LastCheckpoint(ModelCheckpoint):
    """Saves the latest state, whatever the metrics say; beside it another callback may keep the best.

    Each save is a folder of its own, ``step-000100``; ``last`` leads to it once it is complete, and the one before is
    removed after that. A kill at any moment therefore leaves ``last`` at a complete one, and so does a full disk.

    Args:
        every_n_train_steps: optimizer steps between saves, above 0.
        every_n_minutes: save also when the latest save is this many minutes old, after the step at hand. The clock of
            the first process decides, and all ranks save after the same step. Null saves by steps alone.
        dirpath: null takes the run's ``checkpoints``, and another folder is refused: ``--ckpt_path last`` looks there.

    Raises:
        ConfigError: a number is out of bounds.
    """

    def __init__(
        self, every_n_train_steps: int = 100, every_n_minutes: float | None = None, dirpath: str | None = None
    ) -> None:
        if every_n_train_steps < 1:
            raise ConfigError(
                f"trainer.callbacks: LastCheckpoint.every_n_train_steps: {every_n_train_steps} must be at least 1. To"
                " save nothing set trainer.enable_checkpointing to false."
            )
        if every_n_minutes is not None and every_n_minutes < 0:
            raise ConfigError(
                f"trainer.callbacks: LastCheckpoint.every_n_minutes: {every_n_minutes:g} must be 0 or more; null saves"
                " by steps alone."
            )
        super().__init__(
            dirpath,
            save_top_k=0,
            save_last=True,
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,  # there is one last checkpoint, also in a run folder that was moved
        )
        self.every_n_minutes = every_n_minutes
        self._saved_at = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save after an optimizer step when enough of them, or enough time, have passed since the latest save."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.every_n_minutes is None or not ends_step(batch.step):
            return
        if not self._should_skip_saving_checkpoint(trainer):
            due = time.monotonic() - self._saved_at >= 60.0 * self.every_n_minutes
            # Clocks differ between ranks, and a save is a collective.
            if trainer.strategy.broadcast(due):
                self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._saved_at = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the final state, unless the last step did, or the run only tries the code."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self._last_global_step_saved != trainer.global_step or not self.last_model_path:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        if trainer.is_global_zero and not Path(self.last_model_path).exists():
            raise RuntimeError(f"the last checkpoint was not written: {self.last_model_path}")
