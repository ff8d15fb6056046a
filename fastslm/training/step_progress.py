"""StepProgress: one bar over all optimizer steps of a training, with the time left, instead of one for each epoch."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar


class StepProgress(TQDMProgressBar):
    """Counts to ``max_steps``; where that is not set, it counts each epoch as Lightning does."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return what stands beside the bar; a logger's version says nothing there."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def on_train_start(self, trainer: L.Trainer, *arguments: Any) -> None:
        """Show how far training is, also where it goes on within an epoch, whose start is then not told again."""
        super().on_train_start(trainer, *arguments)
        if trainer.max_steps > 0:
            self._show_place(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
        """Go on with the bar of all steps."""
        if trainer.max_steps <= 0:
            super().on_train_epoch_start(trainer, *arguments)
            return
        self._show_place(trainer)

    def _show_place(self, trainer: L.Trainer) -> None:
        """Count to all steps; time before a resumed step does not count for the time left."""
        bar = self.train_progress_bar
        if bar.total != trainer.max_steps:
            bar.reset(total=trainer.max_steps)
            bar.initial = bar.n = trainer.global_step
        bar.set_description(f"Step, epoch {trainer.current_epoch}")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        """Show the step and what is logged for the bar."""
        if trainer.max_steps <= 0:
            super().on_train_batch_end(trainer, pl_module, *arguments)
            return
        bar, step = self.train_progress_bar, trainer.global_step
        if step != bar.n and self._should_update(step, trainer.max_steps):
            bar.n = step
            bar.set_postfix(self.get_metrics(trainer, pl_module))  # draws the bar too
