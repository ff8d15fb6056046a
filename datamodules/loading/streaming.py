"""Batches from shards that can only be read from front to back (``pipe:``), on WebDataset's own pipeline.

Shards are drawn at random with replacement, so that no rank ever runs out; nothing here can be resumed exactly.
"""

import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import DataError
from fastslm.path.batch import Batch, Dialogue, Sample
from fastslm.path.broken import Broken
from fastslm.path.prompt import Prompter

from ..augmentation import Augmentation, augmented, stretch_of
from ..index.dialogues import dialogue_of, parse_fields
from ..plan.costs import CostTable
from ..plan.plan import BatchLimits
from ..reading.audio import decode, read_info
from ..reading.tar import between, recording_names, split_dotted
from ..reading.whole_tar import WholeTar

_MAX_FAILURES_IN_A_ROW = 200
_META = re.compile(r"__[^/]*__($|/)")  # members that WebDataset keeps for itself


@dataclass
class _Raw:
    """A sample that waits in the buffer, its audio still encoded."""

    shard: str
    key: str
    dialogue: Dialogue
    recordings: list[bytes]
    windows: int
    tokens: int


@dataclass
class StreamDataset(IterableDataset[Batch]):
    """The batches of one rank for one epoch of a fixed number of steps.

    Attributes:
        shards: what WebDataset opens, such as ``pipe:aws s3 cp s3://bucket/train-000000.tar -``.
        prompter: the text side.
        costs: what audio costs.
        limits: of a batch.
        max_audio_seconds: longest recording; a longer one is left out and counted.
        context_length: positions of the LLM; a longer dialogue is left out and counted.
        steps: batches of the epoch.
        steps_done: batches of it that a run before this one has trained on.
        identity: numbers that the order follows from: seed, epoch, step, rank.
        buffer: samples that a worker holds to choose from.
        augmentations: what changes the audio.
    """

    shards: Sequence[str]
    prompter: Prompter
    costs: CostTable
    limits: BatchLimits
    max_audio_seconds: float
    context_length: int
    steps: int
    steps_done: int
    identity: tuple[int, ...]
    buffer: int = 200
    augmentations: Sequence[Augmentation] = ()

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        rng = np.random.default_rng([*self.identity, number])
        reader = _Reader(self, rng)
        for _ in range(number, self.steps - self.steps_done, count):  # the loader takes turns among the workers
            yield reader.batch()


class _Reader:
    """Draws batches from an endless row of samples; everything that fails is counted in the next batch."""

    def __init__(self, stream: StreamDataset, rng: np.random.Generator) -> None:
        self.stream, self.rng = stream, rng
        self.broken: list[Broken] = []
        self.unread = self.undecoded = self.empty = 0  # failures in a row, and shards without a sample
        self.held: list[_Raw] = []
        self.samples = self._endless()

    def _pass_over(self, error: Exception) -> bool:
        """Tell WebDataset to go on after an error in a shard, and count it; a mistake in a program is none of these."""
        if isinstance(error, (NameError, TypeError, AttributeError)):
            raise error
        shard = next((str(part) for part in reversed(error.args) if isinstance(part, str) and ":" in part), "?")
        self._fail(shard, "?", error)
        return True

    def _fail(self, shard: str, key: str, error: Exception) -> None:
        """Count a failure, after which the next shard or sample is read.

        Raises:
            DataError: too many came in a row.
        """
        if not isinstance(error, DataError):
            what = " ".join(str(error.args[0] if error.args else "").split()) or type(error).__name__
            if status := re.search(r"exit (-?\d+) \(read\)", what):  # WebDataset shows how it called the command
                what = f"its command ended with status {status[1]}"
            error = DataError(f"unreadable shard: {what}")
        self.broken.append(Broken.of(shard, key, error))
        self.unread += 1
        if max(self.unread, self.undecoded) >= _MAX_FAILURES_IN_A_ROW:
            raise DataError(f"streaming: {_MAX_FAILURES_IN_A_ROW} failures in a row, the last one in {shard}: {error}.")

    def _endless(self) -> Iterator[_Raw]:
        import webdataset

        shards = webdataset.ResampledShards(
            list(self.stream.shards), seed=int(self.rng.integers(1 << 62)), worker_seed=lambda: 0, deterministic=True
        )
        opened = partial(webdataset.tariterators.url_opener, handler=self._pass_over)
        grouped = partial(webdataset.tariterators.group_by_keys, handler=self._pass_over)
        for sample in webdataset.DataPipeline(shards, self._counted, opened, self._members, grouped):
            self.empty = 0
            found = {name: value for name, value in sample.items() if not name.startswith("__")}
            for stem, members in split_dotted(found).items():
                key, shard = f"{sample['__key__']}.{stem}" if stem else sample["__key__"], sample["__url__"]
                try:
                    raw = self._raw(key, shard, members)
                except DataError as error:
                    self._fail(shard, key, error)
                else:
                    self.unread = 0
                    yield raw

    def _counted(self, shards: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Pass shards on, and raise where many in a row gave no sample, not even a broken one."""
        for shard in shards:
            if self.empty == _MAX_FAILURES_IN_A_ROW:
                raise DataError(f"streaming: {self.empty} shards in a row hold no sample, the last one {shard['url']}.")
            self.empty += 1
            yield shard

    def _members(self, opened: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the members of each tar to its last byte, as WebDataset does, and ``{}`` where no sample goes on."""
        for source in opened:
            url, last = source["url"], ""
            try:
                with WholeTar.open(fileobj=source["stream"], mode="r|*") as tar:
                    for member in tar:
                        tar.members = []  # type: ignore[attr-defined]  # or tarfile keeps every header it has read
                        for gap in tar.gaps():
                            if gap.damaged:
                                finding = between(url, gap, last, member.name)
                                self._fail(url, "?", DataError(f"{finding.reason}: {finding.detail}"))
                            yield {}
                        last = member.name
                        if member.isreg() and not _META.match(last):
                            data = tar.extractfile(member).read()  # type: ignore[union-attr]
                            yield {"fname": last, "data": data, "__url__": url}
                    rest = tar.gaps()
                for gap in rest:
                    if gap.damaged:
                        self._fail(url, "?", DataError(f"truncated shard: {gap}, behind {last}"))
                if not rest:
                    self._fail(url, "?", DataError(f"truncated shard: cut behind {last}"))
            except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
                self._fail(url, "?", error)
            yield {}

    def _raw(self, key: str, shard: str, members: dict[str, Any]) -> _Raw:
        if "json" not in members:
            raise DataError("missing json: the sample has no .json member beside its audio")
        fields = parse_fields(members["json"])
        recordings = [members[name] for name in recording_names(members)]
        if not recordings and fields.get("messages") is None:
            raise DataError("missing audio: the sample has no audio member")
        num_samples = np.array([read_info(io.BytesIO(data)).num_samples for data in recordings], np.int64)
        longest = num_samples.max(initial=0) / SAMPLE_RATE_HZ
        if longest > self.stream.max_audio_seconds:
            limit = self.stream.max_audio_seconds
            raise DataError(f"audio too long: {longest:.1f} s is above data.max_audio_seconds {limit:g}")
        dialogue = dialogue_of(fields, self.stream.prompter, len(recordings))
        num_samples = np.ceil(num_samples * stretch_of(self.stream.augmentations)).astype(np.int64)
        windows, tokens = self.stream.costs(num_samples)
        positions = tokens + len(dialogue.input_ids) - len(recordings)
        if positions > self.stream.context_length:
            raise DataError(
                f"context too long: {positions} positions, the LLM was made for {self.stream.context_length}"
            )
        return _Raw(shard, key, dialogue, recordings, windows, positions)

    def batch(self) -> Batch:
        """Return the next batch: a sample drawn at random, and those of the buffer that are most like it in length."""
        samples: list[Sample] = []
        while not samples:
            while len(self.held) < self.stream.buffer:
                self.held.append(next(self.samples))
            for raw in self._chosen():
                try:
                    samples.append(self._decoded(raw))
                    self.undecoded = 0
                except DataError as error:
                    self.undecoded += 1
                    self._fail(raw.shard, raw.key, error)
        batch = Batch.of(samples)
        batch.broken, self.broken = [asdict(item) for item in self.broken], []
        batch.epoch = self.stream.identity[1]
        return batch

    def _chosen(self) -> list[_Raw]:
        limits = self.stream.limits
        target = self.held[int(self.rng.integers(len(self.held)))].tokens
        order = sorted(range(len(self.held)), key=lambda i: abs(self.held[i].tokens - target))
        taken: list[int] = []
        windows = tokens = longest = 0
        for i in order[: limits.samples]:
            raw = self.held[i]
            windows, tokens, longest = windows + raw.windows, tokens + raw.tokens, max(longest, raw.tokens)
            positions = tokens if limits.packed else longest * (len(taken) + 1)
            if taken and (windows > limits.windows or positions > limits.tokens):
                break
            taken.append(i)
        chosen = [self.held[i] for i in taken]
        for i in sorted(taken, reverse=True):
            del self.held[i]
        return chosen

    def _decoded(self, raw: _Raw) -> Sample:
        audio = [decode(io.BytesIO(data)) for data in raw.recordings]
        seed, epoch = self.stream.identity[:2]
        audio = augmented(audio, self.stream.augmentations, seed, epoch, raw.key)
        return Sample(raw.key, raw.dialogue, audio)
