"""What an epoch is planned over, in columns: whole samples and chunks of long ones, across all shards of a split."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import DataError
from fastslm.path.broken import Broken

from ..reading.store import unsigned
from ..reading.tar import text_of
from .build import ShardIndex
from .columns import ShardRows
from .doubts import identities_of
from .texts import CHUNK, Chunks, num_samples_of

Array = npt.NDArray[np.int64]

#: Column of a sidecar, and how it changes when shards are put end to end.
_PER_SAMPLE = ("json_offset", "json_size", "json_crc32")
_PER_RECORDING = ("audio_offset", "audio_size", "audio_crc32")
#: Reasons that are settings, not damage: such samples are counted and shown, and stop nothing.
REFUSED_BY_SETTINGS = ("audio too long", "context too long")


@dataclass(frozen=True)
class Limits:
    """How long a recording may be, and what happens to a longer one.

    Attributes:
        max_audio_seconds: longest recording taken whole.
        long_audio: ``drop`` refuses a longer one and counts it; ``split`` cuts it at the boundaries of its
            ``segments``, and refuses it where it has none; ``error`` stops the run.
    """

    max_audio_seconds: float
    long_audio: Literal["drop", "split", "error"]


@dataclass(frozen=True)
class Entry:
    """One sample of the plan, ready to be read.

    Attributes:
        shard: path or URL of the tar.
        key: the sample's name; chunks of a recording have ``/0``, ``/1``, ... behind it.
        json_region: offset, size and CRC-32 of its JSON in the tar.
        audio_regions: the same of each recording.
        num_samples: of each recording at 16 kHz, whole.
        segments: first and one past the last segment of a chunk; None for a whole sample.
        span_seconds: begin and end of a chunk in its recording; None for a whole sample.
    """

    shard: str
    key: str
    json_region: tuple[int, int, int]
    audio_regions: list[tuple[int, int, int]]
    num_samples: list[int]
    segments: tuple[int, int] | None = None
    span_seconds: tuple[float, float] | None = None


@dataclass
class Entries:
    """The entries of a split.

    Attributes:
        shards: paths or URLs.
        digests: content digest of each shard.
        columns: of all samples of all shards: ``shard``, ``key_end``, ``recording_end``, those of the sidecars.
        key_bytes: their keys.
        sample: the sample behind each entry ``[n]``.
        chunk: the row of ``chunks`` behind it, -1 for a whole sample, ``[n]``.
        num_tokens: ids of its dialogue ``[n]``.
        chunks: all chunks.
        ambiguous: samples whose key is also in another shard; their entries' keys name the shard.
    """

    shards: list[str]
    digests: list[str]
    columns: dict[str, npt.NDArray[Any]]
    key_bytes: npt.NDArray[np.uint8]
    sample: Array
    chunk: Array
    num_tokens: Array
    chunks: Chunks
    ambiguous: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.sample)

    def select(self, kept: npt.NDArray[np.bool_]) -> "Entries":
        """Return some of the entries; ``kept`` ``[n]`` is True for those that stay."""
        return replace(self, sample=self.sample[kept], chunk=self.chunk[kept], num_tokens=self.num_tokens[kept])

    def shard_of(self, index: int) -> str:
        """Return the shard of an entry."""
        return self.shards[int(self.columns["shard"][self.sample[index]])]

    def key(self, index: int) -> str:
        """Return the name of an entry, unique in its split."""
        sample, chunk = int(self.sample[index]), int(self.chunk[index])
        begin, end = _run(self.columns["key_end"], sample)
        key = text_of(self.key_bytes[begin:end].tobytes())
        place = int(np.searchsorted(self.ambiguous, sample))
        if place < len(self.ambiguous) and self.ambiguous[place] == sample:
            key = f"{key}@{unsigned(self.shard_of(index))}"
        return key if chunk < 0 else f"{key}/{self.chunks['number'][chunk]}"

    def __getitem__(self, index: int) -> Entry:
        sample, chunk = int(self.sample[index]), int(self.chunk[index])
        offset, size, crc32 = (int(self.columns[name][sample]) for name in _PER_SAMPLE)
        recordings = slice(*_run(self.columns["recording_end"], sample))
        columns = [self.columns[name][recordings] for name in _PER_RECORDING]
        num_samples = self.columns["num_samples"][recordings].tolist()
        regions = list(zip(*(column.tolist() for column in columns), strict=True))
        segments = span = None
        if chunk >= 0:
            p = self.chunks
            segments = (int(p["first_segment"][chunk]), int(p["last_segment"][chunk]))
            span = (float(p["begin_seconds"][chunk]), float(p["end_seconds"][chunk]))
        return Entry(self.shard_of(index), self.key(index), (offset, size, crc32), regions, num_samples, segments, span)

    def firsts(self) -> npt.NDArray[np.int64]:
        """Return the first entry of each sample, of which chunks were made or not, in the order of the entries."""
        return np.sort(np.unique(self.sample, return_index=True)[1])

    def identities(self, of: Literal["identity", "audio_identity"]) -> npt.NDArray[np.uint64]:
        """Return what tells the samples behind the entries apart by their content, ``[n]``; see ``index.doubts``."""
        return self.columns[of][self.sample]

    def recording_lengths(self) -> tuple[Array, Array]:
        """Return samples at 16 kHz of all recordings of all entries, and how many recordings each entry has ``[n]``."""
        ends = self.columns["recording_end"].astype(np.int64)
        begins = np.concatenate([[0], ends[:-1]])
        counts = (ends - begins)[self.sample]
        starts = np.cumsum(counts) - counts
        places = np.arange(counts.sum()) - np.repeat(starts, counts) + np.repeat(begins[self.sample], counts)
        lengths = self.columns["num_samples"][places].astype(np.int64)
        cut = np.flatnonzero(self.chunk >= 0)  # chunks are of samples with one recording
        p, chosen = self.chunks, self.chunk[cut]
        lengths[starts[cut]] = np.rint((p["end_seconds"][chosen] - p["begin_seconds"][chosen]) * SAMPLE_RATE_HZ)
        return lengths, counts


def _run(ends: npt.NDArray[Any], row: int) -> tuple[int, int]:
    return (int(ends[row - 1]) if row else 0), int(ends[row])


def collect(
    indexes: Sequence[ShardIndex], limits: Limits, chunk_seconds: float | None = None
) -> tuple[Entries, list[Broken]]:
    """Return the entries of some shards, and the samples that cannot be used.

    With ``chunk_seconds`` each recording longer than that is also taken in chunks of this length.

    Raises:
        DataError: a recording is too long and the limits say ``error``.
    """
    broken: list[Broken] = []
    parts = [_of_shard(index, limits, chunk_seconds, broken) for index in indexes]
    base = 0
    samples: list[Array] = []
    chunks: list[Chunks] = []
    numbers: list[Array] = []
    tokens: list[Array] = []
    num_chunks = 0
    for index, (whole, cut) in zip(indexes, parts, strict=True):
        samples += [whole + base, cut["row"] + base]
        numbers += [np.full(len(whole), -1), np.arange(len(cut)) + num_chunks]
        tokens += [index.texts.num_tokens[whole], cut["num_tokens"]]
        chunks.append(cut)
        num_chunks += len(cut)
        base += len(index.rows)
    entries = Entries(
        [index.shard for index in indexes],
        [index.rows.content_digest for index in indexes],
        _columns([index.rows for index in indexes]),
        _joined([index.rows["key_bytes"] for index in indexes], np.uint8),
        _joined(samples, np.int64),
        _joined(numbers, np.int64),
        _joined(tokens, np.int64),
        Chunks(_joined([cut.rows for cut in chunks], CHUNK)),
    )
    entries.ambiguous = _ambiguous([index.rows for index in indexes], entries)
    return entries, broken


def _of_shard(
    index: ShardIndex, limits: Limits, chunk_seconds: float | None, broken: list[Broken]
) -> tuple[Array, Chunks]:
    """Return the samples of a shard that are taken whole, and the chunks; adds to ``broken``."""
    rows, texts = index.rows, index.texts
    broken += [Broken(index.shard, **item) for item in rows.broken]
    seconds = _longest(rows)
    long = seconds > limits.max_audio_seconds
    whole = np.flatnonzero(~long & (texts.num_tokens >= 0))
    unusable = {item.key for item in texts.broken}
    cut = Chunks()
    if limits.long_audio == "split" and long.any():
        cut = texts.chunks[limits.max_audio_seconds]
        broken += cut.broken
        broken += [item for item in texts.broken if item.key not in {other.key for other in cut.broken}]
    else:
        broken += texts.broken
        if long.any():
            keys = rows.keys
            for row in np.flatnonzero(long).tolist():
                detail = (
                    f"{seconds[row]:.1f} s is above data.max_audio_seconds {limits.max_audio_seconds:g}; raise it, or"
                    " set data.long_audio to 'split' (for transcripts with 'segments') or 'drop'"
                )
                if limits.long_audio == "error":
                    raise DataError(f"shard {index.shard}, sample {keys[row]!r}: audio too long: {detail}")
                if keys[row] not in unusable:
                    broken.append(Broken(index.shard, keys[row], "audio too long", detail))
    if chunk_seconds is not None and chunk_seconds != limits.max_audio_seconds:
        short = texts.chunks[chunk_seconds]
        added = short.rows.copy()
        added["number"] += np.bincount(cut["row"], minlength=len(rows))[short["row"]]  # no two of a sample share a name
        cut = Chunks(np.concatenate([cut.rows, added]))
    elif chunk_seconds is not None and limits.long_audio != "split":
        cut = texts.chunks[chunk_seconds]
    return whole, cut


def _longest(rows: ShardRows) -> npt.NDArray[np.float64]:
    """Return the seconds of each sample's longest recording, 0 where it has none."""
    longest = np.zeros(len(rows))
    np.maximum.at(longest, np.repeat(np.arange(len(rows)), rows.num_recordings), rows.seconds)
    return longest


def _columns(rows: Sequence[ShardRows]) -> dict[str, npt.NDArray[Any]]:
    columns: dict[str, npt.NDArray[Any]] = {
        name: _joined([r[name] for r in rows], np.uint32 if name.endswith("crc32") else np.int64)
        for name in (*_PER_SAMPLE, *_PER_RECORDING)
    }
    columns["shard"] = np.repeat(np.arange(len(rows), dtype=np.int32), [len(r) for r in rows])
    columns["num_samples"] = _joined([num_samples_of(r) for r in rows], np.int64)
    identities = [identities_of(r) for r in rows]
    columns["identity"] = _joined([whole for whole, _ in identities], np.uint64)
    columns["audio_identity"] = _joined([audio for _, audio in identities], np.uint64)
    columns["key_end"] = _end_to_end([r["key_end"] for r in rows])
    columns["recording_end"] = _end_to_end([r["recording_end"] for r in rows])
    return columns


def _end_to_end(parts: Iterable[Array]) -> Array:
    shifted, base = [], 0
    for part in parts:
        shifted.append(part + base)
        base += int(part[-1]) if len(part) else 0
    return _joined(shifted, np.int64)


def _joined(parts: Sequence[npt.NDArray[Any]], kind: "npt.DTypeLike") -> npt.NDArray[Any]:
    return np.concatenate(parts).astype(kind, copy=False) if parts else np.zeros(0, kind)


def _ambiguous(rows: Sequence[ShardRows], entries: Entries) -> Array:
    """Return the samples, sorted, whose key is also that of a sample of another shard."""
    hashes = _joined([_key_hashes(r["key_bytes"], r["key_end"]) for r in rows], np.uint64)
    order = np.argsort(hashes, kind="stable")
    equal = hashes[order][1:] == hashes[order][:-1]
    suspects = np.unique(np.concatenate([order[1:][equal], order[:-1][equal]])).astype(np.int64)
    by_key: dict[bytes, list[int]] = {}
    for sample in suspects.tolist():
        begin, end = _run(entries.columns["key_end"], sample)
        by_key.setdefault(entries.key_bytes[begin:end].tobytes(), []).append(sample)
    return np.array(sorted(s for group in by_key.values() if len(group) > 1 for s in group), np.int64)


def _key_hashes(data: npt.NDArray[np.uint8], ends: Array) -> npt.NDArray[np.uint64]:
    """Return 64 bits of each key: a sum of its bytes, each times a random odd number of its place."""
    if not len(ends):
        return np.zeros(0, np.uint64)
    begins = np.concatenate([[0], ends[:-1]])
    places = np.arange(len(data)) - np.repeat(begins, ends - begins)
    factors = np.random.default_rng(0).integers(1, 1 << 63, int(places.max(initial=0)) + 1, np.uint64) * 2 + 1
    sums: npt.NDArray[np.uint64] = np.add.reduceat((data.astype(np.uint64) + 1) * factors[places], begins)
    return sums


def describe(broken: Sequence[Broken]) -> str:
    """Return broken samples counted by reason, each with its first example."""
    first = {item.reason: item for item in reversed(broken)}
    found = []
    for reason, count in Counter(item.reason for item in broken).items():
        example = first[reason]
        detail = f": {example.detail}" if example.detail else ""
        found.append(f"{count} x {reason} (first: shard {example.shard}, sample {example.key!r}{detail})")
    return "; ".join(found) + "."
