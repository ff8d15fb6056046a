"""LastCheckpoint: keeps ``last.ckpt`` no more than a few steps old, and equal to the model when training ends."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Saves the latest state, whatever the metrics say; beside it another callback may keep the best.

    Lightning writes to a temporary file and renames it, so a kill during a save leaves the one before.

    Args:
        every_n_train_steps: optimizer steps between saves, above 0.
        dirpath: folder; null takes the run's ``checkpoints``.
    """

    def __init__(self, every_n_train_steps: int = 100, dirpath: str | None = None) -> None:
        super().__init__(dirpath, save_top_k=0, save_last=True, every_n_train_steps=every_n_train_steps)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the final state, unless the last step did."""
        if self._last_global_step_saved != trainer.global_step or not self.last_model_path:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        if trainer.is_global_zero and not Path(self.last_model_path).exists():
            raise RuntimeError(f"the last checkpoint was not written: {self.last_model_path}")
