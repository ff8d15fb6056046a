"""Samples of a plan, read by offset, checked, decoded and put side by side."""

import zlib
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from torch.utils.data import Dataset

from fastslm.errors import DataError
from fastslm.path.batch import Batch, Dialogue, Sample
from fastslm.path.broken import Broken
from fastslm.path.prompt import Prompter

from ..augmentation import Augmentation, augmented
from ..index.dialogues import dialogue_of, parse_fields, with_answer
from ..index.entries import Entries, Entry
from ..index.texts import joined
from ..plan.plan import RankBatch
from ..plan.sampler import PlanSampler
from ..reading.audio import decode
from ..reading.store import Store


class ShardDataset(Dataset[Batch]):
    """Reads batches of a plan; a broken sample is replaced and reported, never dropped unseen.

    Args:
        entries: all samples of the split.
        prompter: the text side.
        augmentations: what changes the audio, in this order.
        seed: of the augmentations.
        sampler: tells the epoch, of which the augmentations depend.
        needs_answers: refuse samples without an answer, which can only be predicted.
    """

    def __init__(
        self,
        entries: Entries,
        prompter: Prompter,
        augmentations: Sequence[Augmentation] = (),
        seed: int = 0,
        sampler: PlanSampler | None = None,
        needs_answers: bool = True,
    ) -> None:
        self.entries = entries
        self.prompter = prompter
        self.needs_answers = needs_answers
        self._augmentations, self._seed = tuple(augmentations), seed
        self._sampler, self._epoch = sampler, 0
        self._store = Store()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_sampler": None, "_epoch": self.epoch}  # a plan is large, and workers need none

    @property
    def epoch(self) -> int:
        """The epoch we are in."""
        return self._epoch if self._sampler is None else self._sampler.epoch

    def __getitem__(self, planned: RankBatch) -> Batch:
        """Return one batch of the plan."""
        samples, broken = [], []
        # All texts before all audio: between two recordings a tokenizer finds nothing of its tables in the processor's
        # cache, and takes three times as long.
        dialogues = [self._try_dialogue(self.entries[index]) for index, _ in planned]
        for (index, counts), dialogue in zip(planned, dialogues, strict=True):
            try:
                samples.append(self._sample(self.entries[index], dialogue, float(counts)))
            except DataError as error:
                if counts:  # one that only fills a step is counted where it belongs
                    broken.append(Broken.of(self.entries.shard_of(index), self.entries.key(index), error))
        if not samples:  # the step must still run, or this rank would fall behind the others
            samples.append(self._substitute(planned[0][0]))
        batch = Batch.of(samples)
        batch.broken, batch.epoch = [asdict(item) for item in broken], self.epoch
        return batch

    def _substitute(self, index: int) -> Sample:
        """Return some sample that can be read, the next in the data set, weighing nothing."""
        for step in range(1, len(self.entries)):
            try:
                return self.read(self.entries[(index + step) % len(self.entries)], weight=0.0)
            except DataError:  # counted when the plan comes to it
                continue
        shard = self.entries.shard_of(index)
        raise DataError(f"shard {shard}: not one of its data set's samples can be read.")

    def read(self, entry: Entry, weight: float = 1.0) -> Sample:
        """Return a sample with its audio decoded.

        Raises:
            DataError: its bytes cannot be read, decoded or understood, or are not those that were indexed.
        """
        return self._sample(entry, self._try_dialogue(entry), weight)

    def _sample(self, entry: Entry, dialogue: Dialogue | DataError, weight: float) -> Sample:
        if isinstance(dialogue, DataError):
            raise dialogue
        audio = [self._recording(entry, *region) for region in entry.audio_regions]
        audio = augmented(audio, self._augmentations, self._seed, self.epoch, entry.key) if weight else audio
        return Sample(entry.key, dialogue, audio, weight)

    def _try_dialogue(self, entry: Entry) -> Dialogue | DataError:
        """Return the text side of a sample, or why it has none."""
        offset, size, crc32 = entry.json_region
        try:
            data = self._store.read(entry.shard, offset, size)
            if zlib.crc32(data) != crc32:
                raise DataError("checksum differs: its json was modified after indexing")
            fields = parse_fields(data)
            if entry.segments is not None:
                fields = with_answer(fields, joined(fields, entry.segments))
            return dialogue_of(fields, self.prompter, len(entry.audio_regions), self.needs_answers)
        except DataError as error:
            return error

    def _recording(self, entry: Entry, offset: int, size: int, crc32: int) -> "np.typing.NDArray[np.int16]":
        if entry.span_seconds is not None:  # read without what lies before it, so that no checksum can be taken
            return decode(self._store.open(entry.shard, offset, size), *entry.span_seconds)
        file, found = self._store.fetch(entry.shard, offset, size)
        if found != crc32:
            raise DataError("checksum differs: its audio was modified after indexing")
        return decode(file)
