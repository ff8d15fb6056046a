"""LastCheckpoint: keeps ``last.ckpt`` no more than a few steps old, and equal to the model when training ends."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Saves the latest state, whatever the metrics say; beside it another callback may keep the best.

    Each save is a folder of its own, ``step-000100``; ``last`` leads to it once it is complete, and the one before is
    removed after that. A kill at any moment therefore leaves ``last`` at a complete one, and so does a full disk.

    Args:
        every_n_train_steps: optimizer steps between saves, above 0.
        dirpath: folder; null takes the run's ``checkpoints``.
    """

    def __init__(self, every_n_train_steps: int = 100, dirpath: str | None = None) -> None:
        super().__init__(
            dirpath,
            save_top_k=0,
            save_last=True,
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,  # there is one last checkpoint, also in a run folder that was moved
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the final state, unless the last step did."""
        if self._last_global_step_saved != trainer.global_step or not self.last_model_path:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        if trainer.is_global_zero and not Path(self.last_model_path).exists():
            raise RuntimeError(f"the last checkpoint was not written: {self.last_model_path}")
