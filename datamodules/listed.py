"""ListedSource: what to subclass for data of one's own; saying which samples there are is all that it takes."""

import hashlib
import json
import os
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch.utils.data import Dataset

from fastslm.audio.decoding import decode, read_info
from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import DataError
from fastslm.path.batch import Batch, Dialogue, Int16Array, Sample
from fastslm.path.broken import Broken
from fastslm.path.prompt import Prompter
from fastslm.training.data_source import Split

from .index.dialogues import dialogue_of
from .index.entries import describe
from .loading.planned import MOST_SECONDS_OFF, PlannedDataset
from .plan.costs import costs_of
from .plan.plan import Costs
from .plan.sampler import PlanSampler
from .planned import PlannedSource, Planning


@dataclass(frozen=True)
class Listed:
    """A sample, as it is known before its audio is decoded.

    Attributes:
        key: its name, unique in its split.
        fields: its text side, as in the JSON of a shard (docs/data.md): ``text``, or ``messages``, ``task`` and so on.
        num_samples: audio samples at 16 kHz of each recording, in the order of the placeholders.
        files: what holds the recordings.
        digest: changes with the content of the recordings, so that a run is not resumed on others.
    """

    key: str
    fields: Mapping[str, Any]
    num_samples: Sequence[int]
    files: Sequence[str] = field(default=())
    digest: str = ""

    @staticmethod
    def of_files(key: str, fields: Mapping[str, Any], *files: str | Path) -> "Listed | Broken":
        """Return a sample whose recordings are audio files; where a file's header cannot be read, what is wrong.

        Args:
            key: its name.
            fields: its text side.
            files: one for each recording, of any kind that the package reads.
        """
        lengths, digests = [], []
        for path in files:
            try:
                with open(path, "rb") as file:
                    lengths.append(read_info(file).num_samples)
                    digests.append(_fingerprint(file))
            except (DataError, OSError) as error:
                reason = error if isinstance(error, DataError) else DataError(f"unreadable file: {error}")
                return Broken.of(str(path), key, reason)
        return Listed(key, fields, tuple(lengths), tuple(map(str, files)), digest=" ".join(digests))


class ListedSource(PlannedSource):
    """A source whose subclass says which samples there are; batches, order, ranks and exact resume follow.

    Recordings are audio files, unless ``audio`` is overridden.
    """

    @abstractmethod
    def samples(self, split: Split) -> Iterable[Listed | Broken]:
        """Return the samples of a split, in any order, and those that are known to be unusable.

        Called once per rank and split; every rank must be told the same.
        """

    @classmethod
    def audio(cls, sample: Listed) -> list[Int16Array]:
        """Return the recordings of a sample, int16 ``[N]`` at 16 kHz. Called in the loading processes.

        A sample with recordings of another number, kind or length than was listed is counted as broken.

        Raises:
            DataError: one cannot be read; the sample is counted as broken, and training goes on.
            OSError: the same.
        """
        recordings = []
        for path in sample.files:
            with open(path, "rb") as file:
                recordings.append(decode(file))
        return recordings

    def plan(self, split: Split) -> Planning:
        """List the samples of a split, and leave out those that cannot be used.

        Raises:
            DataError: two have one key, too many are broken, or none is usable.
        """
        model, needs_answer = self.model, split != "predict"
        found = list(self.samples(split))
        listed = sorted((item for item in found if isinstance(item, Listed)), key=lambda item: item.key)
        broken = [item for item in found if isinstance(item, Broken)]
        for key, count in Counter(item.key for item in listed).most_common(1):
            if count > 1:
                raise DataError(f"data: {count} samples of {split} have the key {key!r}. Give each a key of its own.")
        usable, num_ids = [], []
        for item in listed:
            try:
                num_ids.append(len(_dialogue(item, model.prompter, needs_answer).input_ids))
                usable.append(item)
            except DataError as error:
                broken.append(Broken.of(_file_of(item), item.key, error))
        counts = np.array([len(item.num_samples) for item in usable], np.int64)
        flat = np.array([n for item in usable for n in item.num_samples], np.int64)
        windows, tokens = costs_of(model, flat, counts)
        positions = tokens + np.array(num_ids, np.int64) - counts
        fits = positions <= model.context_length
        damaged = list(broken)  # what does not fit is a matter of settings
        for item, length in zip(usable, positions.tolist(), strict=True):
            if length > model.context_length:
                detail = f"{length} positions, the LLM was made for {model.context_length}"
                broken.append(Broken(_file_of(item), item.key, "context too long", detail))
        self.broken[split] = broken
        if len(damaged) > self.max_broken_share * len(found):
            raise DataError(
                f"data: {len(damaged)} of {len(found)} samples of {split} are broken, more than data.max_broken_share"
                f" {self.max_broken_share:g} allows. {describe(damaged)}"
            )
        if not fits.any():
            raise DataError(f"data: {split} holds no usable sample. {describe(broken) if broken else 'It is empty.'}")
        chosen = [item for item, fit in zip(usable, fits.tolist(), strict=True) if fit]
        self._listed[split] = chosen
        return Planning(Costs(windows[fits], positions[fits]), [_digest(chosen)])

    @cached_property
    def _listed(self) -> dict[str, list[Listed]]:
        """Usable samples of each split that was planned."""
        return {}

    def keys(self, split: Split) -> list[str]:
        """Return the keys of all usable samples of a split, sorted."""
        return [item.key for item in self._listed[split]]

    def dataset(self, split: Split, sampler: PlanSampler) -> Dataset[Batch]:
        """Return what reads the planned batches of a split."""
        needs_answer = split != "predict"
        return _ListedDataset(self._listed[split], self.model.prompter, type(self).audio, sampler, needs_answer)


class _ListedDataset(PlannedDataset):
    def __init__(
        self,
        listed: Sequence[Listed],
        prompter: Prompter,
        audio: Callable[[Listed], list[Int16Array]],
        sampler: PlanSampler,
        needs_answer: bool,
    ) -> None:
        super().__init__(sampler)
        self._listed, self._prompter, self._audio, self._needs_answer = listed, prompter, audio, needs_answer

    def __len__(self) -> int:
        return len(self._listed)

    def place(self, index: int) -> tuple[str, str]:
        """Return the file and the key of a sample."""
        return _file_of(self._listed[index]), self._listed[index].key

    def dialogue(self, index: int) -> Dialogue:
        """Return the text side of a sample."""
        return _dialogue(self._listed[index], self._prompter, self._needs_answer)

    def sample(self, index: int, dialogue: Dialogue, weight: float) -> Sample:
        """Return a sample with its audio."""
        item = self._listed[index]
        try:
            audio = self._audio(item)
        except OSError as error:
            raise DataError(f"unreadable audio: {error}") from error
        _check_audio(audio, item.num_samples)
        return Sample(item.key, dialogue, audio, weight)


def _check_audio(audio: Any, num_samples: Sequence[int]) -> None:
    """Compare what ``audio`` gave with what was listed, by which batches were planned.

    Raises:
        DataError: it is something else.
    """
    if len(audio) != len(num_samples):
        raise DataError(f"number of recordings differs: audio gives {len(audio)}, {len(num_samples)} are listed")
    for samples, listed in zip(audio, num_samples, strict=True):
        if not isinstance(samples, np.ndarray) or samples.dtype != np.int16 or samples.ndim != 1:
            shape = [*getattr(samples, "shape", ["?"])]
            kind = getattr(samples, "dtype", type(samples).__name__)
            raise DataError(f"no int16 samples [N]: audio gives {kind} {shape}")
        if abs(len(samples) - listed) > MOST_SECONDS_OFF * SAMPLE_RATE_HZ:
            there, known = len(samples) / SAMPLE_RATE_HZ, listed / SAMPLE_RATE_HZ
            raise DataError(f"length differs: audio gives {there:.2f} s, {known:.2f} s are listed")


def _fingerprint(file: BinaryIO) -> str:
    """Return the size of a file and a checksum over blocks from all over it; whole corpora are too much to read."""
    size, checksum = file.seek(0, os.SEEK_END), 0
    for place in range(8):
        file.seek(max(0, size - 4096) * place // 7)
        checksum = zlib.crc32(file.read(4096), checksum)
    return f"{size}:{checksum:08x}"


def _dialogue(item: Listed, prompter: Prompter, needs_answer: bool) -> Dialogue:
    return dialogue_of(dict(item.fields), prompter, len(item.num_samples), needs_answer)


def _file_of(item: Listed) -> str:
    return item.files[0] if item.files else item.key


def _digest(listed: Sequence[Listed]) -> str:
    """Return what changes with any sample: its key, text, lengths or recordings."""
    digest = hashlib.sha256()
    for item in listed:
        identity = [item.key, dict(item.fields), list(map(int, item.num_samples)), item.digest]
        digest.update(json.dumps(identity, sort_keys=True, default=str).encode())
    return digest.hexdigest()
