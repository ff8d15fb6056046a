"""What a run's tokenizer makes of a shard's texts: lengths in ids, and the chunks that long recordings are cut into."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import DataError
from fastslm.path.batch import Int64Array
from fastslm.path.broken import Broken
from fastslm.path.prompt import Prompter
from fastslm.tasks import tasks

from ..reading.store import Store
from .columns import ShardRows, load_arrays, save_arrays
from .dialogues import count_ids, dialogue_of, fields_of, prompts_of, task_of, tokenizer_digest, with_answer

_FORMAT_VERSION = 4
_LONGEST_PAUSE_SECONDS = 10.0  # kept beside a segment that does not fit with all of its pause
_DAMAGED = -2  # ids of a text whose bytes are not those that were indexed

#: What is known of a chunk.
CHUNK = np.dtype(
    [
        ("row", np.int64),  # sample of the shard that it is a chunk of
        ("number", np.int64),  # 0, 1, ... within its sample
        ("first_segment", np.int64),  # of the sample's ``segments``
        ("last_segment", np.int64),  # one past its last
        ("begin_seconds", np.float64),  # in the recording
        ("end_seconds", np.float64),
        ("num_tokens", np.int64),  # ids of its dialogue
    ]
)
_COLUMNS = CHUNK.names or ()


@dataclass
class Chunks:
    """Chunks of the recordings of a shard that are longer than a limit.

    Attributes:
        rows: of ``CHUNK``, one for each.
        broken: samples that cannot be cut.
    """

    rows: npt.NDArray[Any] = field(default_factory=lambda: np.zeros(0, CHUNK))
    broken: list[Broken] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> npt.NDArray[Any]:
        return self.rows[column]


@dataclass
class Texts:
    """Text lengths of one shard.

    Attributes:
        num_tokens: ids of each sample's dialogue, each recording one placeholder; ``[n]``, below 0 where the prompter
            refuses it or its bytes are damaged.
        broken: those samples, with the reason.
        chunks: by their largest length in seconds.
    """

    num_tokens: Int64Array
    broken: list[Broken] = field(default_factory=list)
    chunks: dict[float, Chunks] = field(default_factory=dict)


def read_texts(
    shard: str, rows: ShardRows, prompter: Prompter, store: Store, cache: Path, chunk_seconds: Sequence[float]
) -> Texts:
    """Return the text lengths of a shard: from its index, from the cache, or counted and kept in the cache.

    Raises:
        DataError: the shard cannot be read.
    """
    digest, prompts = tokenizer_digest(prompter), prompts_of(rows.names["task"])
    suffix = f"-{hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]}" if prompts else ""
    name = f"{rows.content_digest}-{digest}{suffix}-v{_FORMAT_VERSION}"
    if rows.tokenizer_digest == digest and rows.prompts == prompts:
        num_tokens = rows["text_tokens"]
    else:
        target = cache / "index" / f"{name}.tokens.npz"
        loaded = _load(target)
        if loaded is not None and loaded[1].get("num_tokens", np.zeros(0)).shape == (len(rows),):
            num_tokens = loaded[1]["num_tokens"]
        else:
            num_tokens = np.array([_count(shard, rows, row, prompter, store) for row in range(len(rows))], np.int64)
            if (num_tokens != _DAMAGED).all():  # what was indexed may be there again
                _save(target, {}, {"num_tokens": num_tokens})
    texts = Texts(num_tokens)
    keys = rows.keys if (num_tokens < 0).any() else []
    for row in np.flatnonzero(num_tokens < 0).tolist():
        texts.broken.append(Broken.of(shard, keys[row], _refusal(shard, rows, row, prompter, store)))
    for seconds in chunk_seconds:
        target = cache / "index" / f"{name}-{seconds:g}.chunks.npz"
        loaded = _load(target)
        if loaded is not None and set(_COLUMNS) <= set(loaded[1]):
            rows_of_chunks = np.rec.fromarrays([loaded[1][column] for column in _COLUMNS], CHUNK)
            broken = [Broken(shard, **item) for item in loaded[0]["broken"]]
            texts.chunks[seconds] = Chunks(rows_of_chunks.view(np.ndarray), broken)
        else:
            chunks = _cut(shard, rows, prompter, store, seconds)
            remarks = [item.remark for item in chunks.broken]
            _save(target, {"broken": remarks}, {column: chunks[column] for column in _COLUMNS})
            texts.chunks[seconds] = chunks
    return texts


def _load(target: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    with contextlib.suppress(OSError, DataError):  # missing or damaged: made anew
        header, arrays = load_arrays(target.read_bytes())
        of = header.get("of", target.name)  # caches of before do not say it
        return (header, arrays) if of == target.name else None  # of another shard or tokenizer
    return None


def _save(target: Path, header: dict[str, Any], arrays: dict[str, Any]) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(target, {"of": target.name, **header}, arrays)
    except OSError as error:
        raise DataError(
            f"cannot keep text lengths in {target.parent}: {error.strerror}. Set data.cache_dir."
        ) from error


def _fields(shard: str, rows: ShardRows, row: int, store: Store) -> dict[str, Any]:
    offset, size, crc32 = rows.json_region(row)
    return fields_of(store.read(shard, offset, size), crc32)


def _count(shard: str, rows: ShardRows, row: int, prompter: Prompter, store: Store) -> int:
    offset, size, crc32 = rows.json_region(row)
    data = store.read(shard, offset, size)
    try:
        fields = fields_of(data, crc32)
    except DataError:  # said by _refusal
        return _DAMAGED
    return count_ids(fields, prompter, len(rows.recordings(row)))


def _refusal(shard: str, rows: ShardRows, row: int, prompter: Prompter, store: Store) -> DataError:
    try:
        dialogue_of(_fields(shard, rows, row, store), prompter, len(rows.recordings(row)), needs_answer=False)
    except DataError as error:
        return error
    return DataError("unusable text: the index could not count its ids; make it anew: fastslm shards index")


# -- chunks -----------------------------------------------------------------------------------------------------------


def _cut(shard: str, rows: ShardRows, prompter: Prompter, store: Store, max_seconds: float) -> Chunks:
    """Return the chunks of every sample longer than ``max_seconds``, and the samples that cannot be cut."""
    found: list[tuple[float, ...]] = []
    broken = []
    keys, seconds = rows.keys, rows.seconds
    for row in range(len(rows)):
        recordings = rows.recordings(row)
        longest = max((float(seconds[r]) for r in recordings), default=0.0)
        if longest <= max_seconds:
            continue
        try:
            sample = _fields(shard, rows, row, store)
            if len(recordings) != 1 or not _can_split(sample):
                raise DataError("audio too long: it has no segments to be cut at, or is no transcript")
            for number, (first, last, begin, end) in enumerate(
                split_segments(sample["segments"], max_seconds, longest)
            ):
                words = with_answer(sample, joined(sample, (first, last)))
                num_tokens = len(dialogue_of(words, prompter, 1).input_ids)
                found.append((row, number, first, last, begin, end, num_tokens))
        except DataError as error:
            found = [chunk for chunk in found if chunk[0] != row]
            broken.append(Broken.of(shard, keys[row], error))
    return Chunks(np.array(found, CHUNK), broken)


def _can_split(sample: dict[str, Any]) -> bool:
    # A summary or an answer belongs to the whole recording, a transcript to its segments.
    task = tasks().get(task_of(sample)) if sample.get("messages") is None else None
    return task is not None and task.transcript and bool(sample.get("segments"))


def split_segments(segments: Any, max_seconds: float, duration: float) -> list[tuple[int, int, float, float]]:
    """Return chunks of a long recording as (first segment, one past the last, begin, end in seconds).

    A chunk takes as many whole segments as fit; it begins and ends in the middle of the gaps between segments.

    Args:
        segments: from the sample's JSON: a list of ``start`` and ``end`` in seconds and ``text``.
        max_seconds: longest chunk.
        duration: seconds of the recording.

    Raises:
        DataError: one segment alone is longer than the limit, or the segments make no sense.
    """
    try:
        times = [(float(segment["start"]), float(segment["end"])) for segment in segments]
        texts = [segment["text"] for segment in segments]
    except (TypeError, ValueError, KeyError) as error:
        raise DataError("unusable segments: each needs 'start' and 'end' in seconds, and 'text'") from error
    cuts = [0.0, *((a[1] + b[0]) / 2 for a, b in pairwise(times)), duration]
    ordered = times == sorted(times) and all(a <= b for a, b in times)
    ordered = ordered and all(a < b for a, b in pairwise(cuts))
    if not ordered or times[-1][1] > duration + 1.0 or not all(isinstance(text, str) for text in texts):
        raise DataError(f"unusable segments: they are not in order, or leave the recording of {duration:.1f} s")
    chunks, first = [], 0
    while first < len(times):
        begin, end = cuts[first], cuts[first + 1]
        if end - begin > max_seconds:
            start, stop = times[first]
            margin = min((max_seconds - (stop - start)) / 2, _LONGEST_PAUSE_SECONDS)
            if margin < 0:
                raise DataError(f"audio too long: the segment at {start:.1f} s alone exceeds the limit")
            begin, end = max(begin, start - margin), min(end, stop + margin)
        last = first + 1
        while last < len(times) and cuts[last + 1] - begin <= max_seconds:
            last += 1
            end = cuts[last]
        chunks.append((first, last, begin, end))
        first = last
    return chunks


def joined(sample: dict[str, Any], segments: tuple[int, int]) -> str:
    """Return the words of a run of segments, as its first and one past its last."""
    return " ".join(segment["text"].strip() for segment in sample["segments"][slice(*segments)])


def num_samples_of(rows: ShardRows) -> Int64Array:
    """Return the samples of each recording at 16 kHz; the decoder may give one more or less."""
    rate = rows["sample_rate_hz"].astype(np.int64)
    return np.asarray(-(-rows["num_frames"] * SAMPLE_RATE_HZ // rate), np.int64)
