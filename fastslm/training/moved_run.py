"""A run that goes on in a folder that was moved or copied: its best checkpoints are found there."""

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from fastslm.checkpoint.folder import folder_behind


class MovedRun(L.Callback):
    """Lets scores go with the checkpoints that have them.

    A checkpoint names others by their whole paths, and Lightning forgets the scores of those in another folder.
    """

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the paths right where the run folder of the checkpoint is the one that the run writes to."""
        loaded_from = Path(os.path.realpath(str(trainer.ckpt_path)))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint) and Path(str(callback.dirpath)).parent in loaded_from.parents:
                _put_right(checkpoint["callbacks"].get(callback.state_key, {}), str(callback.dirpath))


def _put_right(state: dict[str, Any], folder: str) -> None:
    before = state.get("dirpath")
    if before in (None, folder):
        return

    def here(path: str) -> str:
        return path and os.path.join(folder, os.path.relpath(path, before))

    scores = {here(path): score for path, score in state.get("best_k_models", {}).items()}
    # A score without its checkpoint would keep a new one from being saved.
    if all(os.path.exists(path) or folder_behind(Path(path)) for path in scores):
        names = state.keys() & {"best_model_path", "kth_best_model_path", "last_model_path"}
        state.update({name: here(state[name]) for name in names}, dirpath=folder, best_k_models=scores)
