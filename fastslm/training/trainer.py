"""Lightning's Trainer, saving complete checkpoints: whoever saves, and under every strategy, one format comes out."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from fastslm.checkpoint.folder import folder_behind, remove
from fastslm.checkpoint.writer import write_checkpoint
from fastslm.errors import DataError
from fastslm.training.data_source import source_of
from fastslm.training.due_validation import due_validation
from fastslm.training.lightning_module import SpeechLMModule


class Trainer(L.Trainer):
    """Lightning's Trainer; what it saves is described in ``fastslm.checkpoint.writer``."""

    def _run_stage(self) -> Any:
        """Run fit, validate, test or predict.

        Raises:
            DataError: there is nothing to train on, which Lightning takes for the end of training.
        """
        if self.state.fn != TrainerFn.FITTING:
            return super()._run_stage()
        due_validation(self).prepare(self)
        results = super()._run_stage()
        if self.fit_loop.max_batches == 0:
            given = source_of(self)
            who = "the training loader" if given is None else type(given).__name__
            raise DataError(
                f"data: {who} gives no training batch, so nothing was trained. Give it samples to train on."
            )
        return results

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint's folder, and at ``filepath`` a link to the trainer's state in it.

        Every rank calls this. A module that is no ``SpeechLMModule``, and a path that is no local one, are saved as
        Lightning does.

        Raises:
            CheckpointError: a tensor is missing or empty, or the disk is full; earlier checkpoints are untouched.
        """
        module = self.lightning_module
        if not isinstance(module, SpeechLMModule) or "://" in str(filepath) or storage_options is not None:
            super().save_checkpoint(filepath, weights_only, storage_options)
            return
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:
            self.strategy.checkpoint_io = _FolderIO()
        with self.profiler.profile("save_checkpoint"):  # type: ignore[attr-defined]
            state = self._checkpoint_connector.dump_checkpoint(weights_only)
            data = state.get(type(source_of(self)).__qualname__, {})
            write = partial(self.strategy.save_checkpoint, state)
            write_checkpoint(self, module, Path(filepath), data, write)
            self.strategy.barrier("Trainer.save_checkpoint")


class _FolderIO(TorchCheckpointIO):
    """Removes the folder behind a link together with the link."""

    def remove_checkpoint(self, path: str | Path) -> None:
        link = Path(path)
        folder = folder_behind(link)
        if link.is_symlink():
            link.unlink()
        else:
            super().remove_checkpoint(path)
        if folder is not None:
            remove(folder.resolve())
