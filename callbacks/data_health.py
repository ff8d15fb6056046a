"""DataHealth: samples that could not be used, by reason and shard, and doubtful ones; stops the run above a limit."""

from collections import Counter
from typing import Any

import lightning as L

from fastslm.errors import DataError
from fastslm.path.batch import Batch
from fastslm.training.data_source import source_of

_MIN_SEEN = 20  # below this many samples a share says nothing


class DataHealth(L.Callback):
    """Counts samples that the index refused and samples that broke when they were read.

    Shows the counts at the start of a run and at the end of each epoch, logs ``data/broken``, and stops the run when
    more than the data module's ``max_broken_share`` of the samples read are broken. Samples whose words spell out a
    control token of the tokenizer (``<|im_end|>``) are counted too: they are read as text, and may be mistakes. So are
    those with characters that the tokenizer does not know.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._broken: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], str] = {}
        self._doubts: Counter[str] = Counter()
        self._first_doubts: dict[str, str] = {}
        self._spelt: Counter[str] = Counter()
        self._spelling, self._first_spelling = 0, ""  # samples that spell some, and the key of the first
        self._unknown: Counter[str] = Counter()  # of characters: samples
        self._unreadable, self._first_unreadable = 0, ""

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
        if not trainer.is_global_zero:
            return
        source = source_of(trainer)
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
        pl_module.log("data/broken", float(self._broken.total()), batch_size=1, sync_dist=True, reduce_fx="sum")

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any, **__: Any
    ) -> None:
        """Count, and stop when too much is broken."""
        self._count(trainer, batch)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def _count(self, trainer: L.Trainer, batch: Batch) -> None:
        self._seen += sum(weight > 0 for weight in batch.weights) + len(batch.broken)
        for key, dialogue in zip(batch.keys, batch.dialogues, strict=True):
            if dialogue.spelt:
                self._spelling += 1
                self._spelt.update(set(dialogue.spelt))
                self._first_spelling = self._first_spelling or key
            if dialogue.unknown:
                self._unreadable += 1
                self._unknown.update(set(dialogue.unknown))
                self._first_unreadable = self._first_unreadable or key
        for item in batch.doubtful:
            self._doubts[item["reason"]] += 1
            first = f"{item['shard']}, sample {item['key']!r}: {item['detail']}"
            self._first_doubts.setdefault(item["reason"], first)
        for item in batch.broken:
            place = (item["shard"], item["reason"])
            self._broken[place] += 1
            self._examples.setdefault(place, f"sample {item['key']!r}: {item['detail']}")
        source = source_of(trainer)
        limit = source.max_broken_share if source is not None else 1.0
        if self._seen >= _MIN_SEEN and self._broken.total() > limit * self._seen:
            raise DataError(
                f"{self._broken.total()} of {self._seen} samples read are broken, more than data.max_broken_share"
                f" {limit:g} allows. {self._table()}"
            )

    def _table(self) -> str:
        return "; ".join(
            f"{count} x {reason} in {shard} (first: {self._examples[shard, reason]})"
            for (shard, reason), count in self._broken.most_common(10)
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
        if self._broken:
            print(f"rank {trainer.global_rank}: {self._broken.total()} of {self._seen} samples broken: {self._table()}")
        for reason, count in self._doubts.most_common():
            print(
                f"rank {trainer.global_rank}: {count} of {self._seen} samples are to be looked at: {reason} (first:"
                f" {self._first_doubts[reason]})"
            )
        if self._spelling:
            tokens = ", ".join(f"{count} x {token}" for token, count in self._spelt.most_common(5))
            print(
                f"rank {trainer.global_rank}: {self._spelling} of {self._seen} samples spell out control tokens, which"
                f" are read as text: {tokens} (first: sample {self._first_spelling!r})"
            )
        if self._unreadable:
            most = ", ".join(f"{count} x {piece!r}" for piece, count in self._unknown.most_common(10))
            more = f" and {len(self._unknown) - 10} others" if len(self._unknown) > 10 else ""
            print(
                f"rank {trainer.global_rank}: in {self._unreadable} of {self._seen} samples or their prompts the"
                f" tokenizer does not know these characters: {most}{more}; they are all read as its unk_token (first:"
                f" sample {self._first_unreadable!r})"
            )
