"""DataHealth: samples that could not be used, by reason and shard, and doubtful ones; stops the run above a limit."""

from collections import Counter
from typing import Any

import lightning as L

from fastslm.errors import DataError
from fastslm.path.batch import Batch, ends_step
from fastslm.processes.ranks import gathered
from fastslm.training.data_source import source_of

from ._findings import Findings

_MIN_SEEN = 20  # below this many samples a share says nothing


class DataHealth(L.Callback):
    """Counts samples that the index refused and samples that broke when they were read.

    Shows the counts at the start of a run and at the end of each epoch, logs ``data/broken``, and stops the run when
    more than the data module's ``max_broken_share`` of the samples read are broken. Samples whose words spell out a
    control token of the tokenizer (``<|im_end|>``) are counted too: they are read as text, and may be mistakes. So are
    those with characters that the tokenizer does not know.
    """

    def __init__(self) -> None:
        self._found = Findings()  # up to the last whole step, where a run goes on
        self._since = Findings()
        self._goes_on = False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from a checkpoint."""
        self._found, self._goes_on = Findings.of_state(state_dict), True

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what all ranks have found; Lightning has gathered the states of the callbacks already."""
        found = Findings()
        for part in gathered(self._found):
            found.add(part)
        checkpoint.setdefault("callbacks", {})[self.state_key] = found.state()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave what a checkpoint says to the first rank: it is what all of them had found."""
        if trainer.global_rank and self._goes_on:
            self._found = Findings()
        self._goes_on = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show what the index left out."""
        self._show_index(trainer)

    on_test_start = on_predict_start = on_fit_start

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show what the index left out, when validation is all there is."""
        if trainer.state.fn == "validate":
            self._show_index(trainer)

    @staticmethod
    def _show_index(trainer: L.Trainer) -> None:
        source = source_of(trainer) if trainer.is_global_zero else None
        if source is None:
            return
        for said, found in (("left out", source.broken), ("to be looked at:", source.doubtful)):
            for split, items in found.items():
                for reason, count in Counter(item.reason for item in items).most_common():
                    first = next(item for item in items if item.reason == reason)
                    detail = f": {first.detail}" if first.detail else ""
                    place = f"{first.shard}, sample {first.key!r}{detail}"
                    print(f"{split} data: {said} {count} x {reason} (first: {place})")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count, and stop when too much is broken."""
        self._count(trainer, batch)
        # Each rank counts what it reads, and only the first one has a logger.
        pl_module.log("data/broken", float(self._num_broken), batch_size=1, sync_dist=True, reduce_fx="sum")

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any, **__: Any
    ) -> None:
        """Count, and stop when too much is broken."""
        self._count(trainer, batch)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    @property
    def _num_broken(self) -> int:
        return self._found.broken.total() + self._since.broken.total()

    def _count(self, trainer: L.Trainer, batch: Batch) -> None:
        self._since.add(Findings.of(batch))
        source = source_of(trainer)
        limit = source.max_broken_share if source is not None else 1.0
        seen = self._found.seen + self._since.seen
        broken = self._num_broken
        is_too_much = seen >= _MIN_SEEN and broken > limit * seen
        if is_too_much or ends_step(batch.step):
            self._found.add(self._since)
            self._since = Findings()
        if is_too_much:
            raise DataError(
                f"{broken} of {seen} samples read are broken, more than data.max_broken_share {limit:g} allows."
                f" {self._found.broken_table()}"
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show what broke so far."""
        self._show_broken(trainer)

    on_test_epoch_end = on_predict_epoch_end = on_train_epoch_end

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show what broke, when validation is all there is."""
        if trainer.state.fn == "validate":
            self._show_broken(trainer)

    def _show_broken(self, trainer: L.Trainer) -> None:
        for line in self._found.lines():
            print(f"rank {trainer.global_rank}: {line}")
