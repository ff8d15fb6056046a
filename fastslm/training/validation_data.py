"""A run that goes on with other validation data: scores of two sets say nothing of each other."""

import math
import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from fastslm.training.data_source import source_of


class ValidationData(L.Callback):
    """Notes in each checkpoint what is validated on; on other data than that, what was best before is forgotten.

    The best checkpoint stays where it is until the first validation on the new data, which replaces it.
    """

    def __init__(self) -> None:
        self._fingerprint: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what is validated on."""
        return {"fingerprint": self._fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was validated on."""
        self._fingerprint = state_dict["fingerprint"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare with what is validated on from now on."""
        source = source_of(trainer)
        if source is None or not trainer.enable_validation:
            return
        before, self._fingerprint = self._fingerprint, source.fingerprint("val")
        if before in (None, self._fingerprint):
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            _forget_best(callback)
        if trainer.is_global_zero:
            print(
                "fastslm: validation is on other data than before: what was best there no longer counts, and the next"
                " validation is the best so far.",
                file=sys.stderr,
            )


def _forget_best(callback: L.Callback) -> None:
    """Let the next score of validation be better than all before."""
    if not isinstance(callback, (ModelCheckpoint, EarlyStopping)) or not str(callback.monitor).startswith("val/"):
        return
    worst = torch.tensor(math.inf if callback.mode == "min" else -math.inf)
    if isinstance(callback, EarlyStopping):
        callback.best_score, callback.wait_count = worst, 0
    elif callback.best_k_models:
        callback.best_k_models = dict.fromkeys(callback.best_k_models, worst)
        callback.best_model_score = callback.kth_value = worst
