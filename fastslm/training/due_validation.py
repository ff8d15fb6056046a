"""A validation that a kill or a signal cut, or kept from beginning: the run that goes on does it first."""

from typing import Any

import lightning as L


class DueValidation(L.Callback):
    """Notes in each checkpoint whether its step is still to be validated, and begins with that when a run goes on.

    Lightning takes the validation of the step that it goes on from for done. A signal within it ends the run at once:
    what it goes on from is saved, so this callback comes before the one that listens for signals.
    """

    def __init__(self) -> None:
        self._due = False
        self._validated_step = -1
        self._added_step = False

    def state_dict(self) -> dict[str, Any]:
        """Return whether the step is to be validated."""
        return {"due": self._due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take that up."""
        self._due = bool(state_dict["due"])

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find it out; Lightning has gathered the states of the callbacks already."""
        loop = trainer.fit_loop
        fetcher = loop._data_fetcher
        checks = fetcher is not None and trainer.enable_validation and loop.epoch_loop._should_check_val_fx(fetcher)
        due = checks and self._validated_step != trainer.global_step
        checkpoint.setdefault("callbacks", {})[self.state_key] = {"due": due}

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that a step is validated, before the best checkpoint is saved."""
        if not trainer.sanity_checking:
            self._validated_step = trainer.global_step

    def prepare(self, trainer: L.Trainer) -> None:
        """Let a run begin whose steps are all done, and whose last validation is not."""
        loop = trainer.fit_loop.epoch_loop
        if self._due and loop.max_steps == trainer.global_step:
            loop.max_steps += 1
            self._added_step = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do the validation, as Lightning does one between two steps."""
        loop = trainer.fit_loop.epoch_loop
        if self._added_step:
            loop.max_steps -= 1
            self._added_step = False
        if not self._due:
            return
        self._due = False
        trainer.validating = True
        loop.val_loop.restarting = False
        loop.val_loop.run()
        trainer.training = True


def due_validation(trainer: L.Trainer) -> DueValidation:
    """Return the trainer's callback of this kind, or one that has nothing to do."""
    found = (c for c in trainer.callbacks if isinstance(c, DueValidation))  # type: ignore[attr-defined]
    return next(found, DueValidation())
