"""Samples of a plan, read by offset, checked, decoded and put side by side."""

from collections.abc import Sequence

import numpy as np

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import DataError
from fastslm.path.batch import Dialogue, Sample
from fastslm.path.prompt import Prompter

from ..augmentation import Augmentation, augmented
from ..index.dialogues import dialogue_of, fields_of, with_answer
from ..index.doubts import audio_doubts
from ..index.entries import Entries, Entry
from ..index.texts import joined
from ..plan.sampler import PlanSampler
from ..reading.audio import decode
from ..reading.store import Store
from .planned import MOST_SECONDS_OFF, PlannedDataset


class ShardDataset(PlannedDataset):
    """Reads batches of a plan from tar shards.

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
        super().__init__(sampler)
        self.entries = entries
        self.prompter = prompter
        self.needs_answers = needs_answers
        self._augmentations, self._seed = tuple(augmentations), seed
        self._store = Store()

    def __len__(self) -> int:
        return len(self.entries)

    def place(self, index: int) -> tuple[str, str]:
        """Return the shard and the key of a sample."""
        return self.entries.shard_of(index), self.entries.key(index)

    def dialogue(self, index: int) -> Dialogue:
        """Return the text side of a sample.

        Raises:
            DataError: its JSON cannot be read or understood, or is not the one that was indexed.
        """
        entry = self.entries[index]
        offset, size, crc32 = entry.json_region
        fields = fields_of(self._store.read(entry.shard, offset, size), crc32)
        if entry.segments is not None:
            fields = with_answer(fields, joined(fields, entry.segments))
        return dialogue_of(fields, self.prompter, len(entry.audio_regions), self.needs_answers)

    def sample(self, index: int, dialogue: Dialogue, weight: float) -> Sample:
        """Return a sample with its audio decoded.

        Raises:
            DataError: its audio cannot be read or decoded, or is not the one that was indexed.
        """
        entry, doubts = self.entries[index], list[str]()
        regions = zip(entry.audio_regions, entry.num_samples, strict=True)
        audio = [self._recording(entry, *region, num_samples, doubts) for region, num_samples in regions]
        doubts += audio_doubts(audio)
        audio = augmented(audio, self._augmentations, self._seed, self.epoch, entry.key) if weight else audio
        return Sample(entry.key, dialogue, audio, weight, doubts)

    def _recording(
        self, entry: Entry, offset: int, size: int, crc32: int, num_samples: int, doubts: list[str]
    ) -> "np.typing.NDArray[np.int16]":
        if entry.span_seconds is not None:  # read without what lies before it, so that no checksum can be taken
            return decode(self._store.open(entry.shard, offset, size), *entry.span_seconds, remarks=doubts)
        file, found = self._store.fetch(entry.shard, offset, size)
        if found != crc32:
            raise DataError("checksum differs: its audio was modified after indexing")
        samples = decode(file, remarks=doubts)
        if abs(len(samples) - num_samples) > MOST_SECONDS_OFF * SAMPLE_RATE_HZ:  # batches were planned by it
            there, known = len(samples) / SAMPLE_RATE_HZ, num_samples / SAMPLE_RATE_HZ
            raise DataError(
                f"length differs from index: {there:.2f} s are decoded, the index knows {known:.2f} s; make it anew:"
                f" fastslm shards index --force {entry.shard}"
            )
        return samples
