"""What a tar shard holds, found once: where each sample's bytes lie, how long its audio is, how many ids its text has."""

import hashlib
import json
import os
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from tqdm import tqdm

from fastslm.errors import DataError
from fastslm.mel import SAMPLE_RATE_HZ
from fastslm.prompt import Prompter, messages_of

from ._audio import FileRegion, read_info

AUDIO_EXTENSIONS = ("flac", "wav", "mp3", "ogg", "opus")
_FORMAT_VERSION = 1


@dataclass
class Broken:
    """A sample that cannot be used, and why; counted, shown, never silent."""

    shard: str
    key: str
    reason: str
    detail: str = ""


@dataclass
class Entry:
    """One sample of the plan: a whole sample of a shard, or a run of segments of a long one.

    Attributes:
        shard: path of the tar.
        key: the sample's name; pieces of a split recording get ``/0``, ``/1``, ... behind it.
        json_region: offset and size of its JSON in the tar.
        audio_regions: offset and size of each recording.
        num_samples: samples of each recording at 16 kHz, from its header.
        num_text_ids: ids of the dialogue, each recording one placeholder.
        segments: first and one past the last segment of the piece; None for a whole sample.
        span_seconds: begin and end of the piece in its recording; None for a whole sample.
    """

    shard: str
    key: str
    json_region: tuple[int, int]
    audio_regions: list[tuple[int, int]]
    num_samples: list[int]
    num_text_ids: int
    segments: tuple[int, int] | None = None
    span_seconds: tuple[float, float] | None = None


@dataclass
class ShardIndex:
    """Everything known of one shard."""

    entries: list[Entry] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)


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


def index_shards(paths: Sequence[str], prompter: Prompter, limits: Limits, cache: Path) -> list[ShardIndex]:
    """Return the index of each shard, from the cache where neither shard nor settings have changed.

    Raises:
        DataError: a shard is missing or empty, or a recording is too long and the limits say ``error``.
    """
    progress = tqdm(paths, desc="Reading shards", unit="shard", disable=len(paths) < 8, leave=False)
    return [_cached(path, prompter, limits, cache) for path in progress]


def _cached(path: str, prompter: Prompter, limits: Limits, cache: Path) -> ShardIndex:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"shard {path}: {error.strerror}. Check data.train_shards and data.val_shards.") from error
    tokenizer = prompter.tokenizer
    probe = tokenizer(f"{tokenizer.chat_template} 0123456789 The quick brown fox", add_special_tokens=False)
    identity = [
        _FORMAT_VERSION, os.path.abspath(path), status.st_size, status.st_mtime_ns, asdict(limits),
        len(tokenizer), probe["input_ids"], prompter.enable_thinking,
    ]  # fmt: skip
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    stored = cache / "index" / f"{name}.json"
    if stored.exists():
        rows = json.loads(stored.read_text())
        return ShardIndex([_entry(row) for row in rows["entries"]], [Broken(**row) for row in rows["broken"]])
    index = index_shard(path, prompter, limits)
    stored.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=stored.parent, delete=False, suffix=".partial") as file:
        json.dump(asdict(index), file)
    os.replace(file.name, stored)
    return index


def _entry(row: dict[str, Any]) -> Entry:
    values = {f.name: row[f.name] for f in fields(Entry)}
    values["json_region"] = tuple(row["json_region"])
    values["audio_regions"] = [tuple(region) for region in row["audio_regions"]]
    values["segments"] = row["segments"] and tuple(row["segments"])
    values["span_seconds"] = row["span_seconds"] and tuple(row["span_seconds"])
    return Entry(**values)


def index_shard(path: str, prompter: Prompter, limits: Limits) -> ShardIndex:
    """Return what one shard holds; samples that cannot be used are listed, not raised.

    Raises:
        DataError: the shard holds no sample at all, or a recording is too long and the limits say ``error``.
    """
    index = ShardIndex()
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    size = os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if member.offset_data + member.size > size:
                    index.broken.append(Broken(path, key, "truncated shard", f"{member.name} runs past the end"))
                    continue
                groups.setdefault(key, {})[extension.lower()] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        if not groups and not index.broken:
            raise DataError(f"shard {path}: not an uncompressed tar ({error}).") from error
        index.broken.append(Broken(path, "?", "truncated shard", str(error)))
    if not groups and not index.broken:
        raise DataError(f"shard {path}: holds no sample. Remove it from the list or build it anew.")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for key, members in groups.items():
            try:
                index.entries += _entries(path, key, members, descriptor, prompter, limits)
            except DataError as error:
                if limits.long_audio == "error" and "too long" in str(error):
                    raise DataError(f"shard {path}, sample {key!r}: {error}") from error
                what, _, detail = str(error).partition(": ")
                index.broken.append(Broken(path, key, what, detail))
    finally:
        os.close(descriptor)
    return index


def _entries(
    path: str,
    key: str,
    members: dict[str, tuple[int, int]],
    descriptor: int,
    prompter: Prompter,
    limits: Limits,
) -> list[Entry]:
    if "json" not in members:
        raise DataError("missing json: the sample has no .json member beside its audio")
    sample_fields = read_fields(descriptor, members["json"])
    regions = [members[e] for e in sorted(members) if e.rpartition(".")[2] in AUDIO_EXTENSIONS]
    # BinaryIO in name only: soundfile asks for read, seek and tell
    infos = [read_info(cast(BinaryIO, FileRegion(descriptor, *region))) for region in regions]
    if not regions and "messages" not in sample_fields:
        raise DataError(f"missing audio: the sample has no member ending in {', '.join(AUDIO_EXTENSIONS)}")
    num_samples = [info.num_samples for info in infos]
    longest = max(num_samples, default=0) / SAMPLE_RATE_HZ
    if longest <= limits.max_audio_seconds:
        dialogue = dialogue_of(sample_fields, prompter, len(regions))
        return [Entry(path, key, members["json"], regions, num_samples, len(dialogue.input_ids))]
    if limits.long_audio != "split" or len(regions) != 1 or not sample_fields.get("segments"):
        raise DataError(
            f"audio too long: {longest:.1f} s is above data.max_audio_seconds {limits.max_audio_seconds:g}; raise it,"
            " or set data.long_audio to 'split' (the sample needs 'segments') or 'drop'"
        )
    pieces = []
    for part, (first, last, begin, end) in enumerate(split_segments(sample_fields["segments"], limits, longest)):
        dialogue = dialogue_of({**sample_fields, "text": _joined(sample_fields, first, last)}, prompter, 1)
        samples = round((end - begin) * SAMPLE_RATE_HZ)
        pieces.append(
            Entry(
                path, f"{key}/{part}", members["json"], regions, [samples], len(dialogue.input_ids),
                (first, last), (begin, end),
            )  # fmt: skip
        )
    return pieces


def split_segments(
    segments: Sequence[dict[str, Any]], limits: Limits, duration: float
) -> list[tuple[int, int, float, float]]:
    """Return pieces of a long recording as (first segment, one past the last, begin, end in seconds).

    A piece takes as many whole segments as fit; it begins and ends in the middle of the gaps between segments.

    Raises:
        DataError: one segment alone is longer than the limit.
    """
    times = [(float(s["start"]), float(s["end"])) for s in segments]
    cuts = [0.0, *((a[1] + b[0]) / 2 for a, b in zip(times, times[1:], strict=False)), duration]
    pieces, first = [], 0
    while first < len(times):
        last = first + 1
        while last < len(times) and cuts[last + 1] - cuts[first] <= limits.max_audio_seconds:
            last += 1
        if cuts[last] - cuts[first] > limits.max_audio_seconds:
            raise DataError(f"audio too long: the segment at {times[first][0]:.1f} s alone exceeds the limit")
        pieces.append((first, last, cuts[first], cuts[last]))
        first = last
    return pieces


def read_fields(descriptor: int, region: tuple[int, int]) -> dict[str, Any]:
    """Return a sample's JSON.

    Raises:
        DataError: it is not a JSON object.
    """
    try:
        value = json.loads(os.pread(descriptor, region[1], region[0]))
    except ValueError as error:
        raise DataError(f"unreadable json: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"unreadable json: a {type(value).__name__} where an object was expected")
    return value


def _joined(sample_fields: dict[str, Any], first: int, last: int) -> str:
    return " ".join(str(s["text"]) for s in sample_fields["segments"][first:last])


def dialogue_of(sample_fields: dict[str, Any], prompter: Prompter, num_recordings: int) -> Any:
    """Return the dialogue of a sample's fields.

    Raises:
        DataError: the text is missing or does not fit the recordings.
    """
    try:
        messages = messages_of(sample_fields)
    except DataError as error:
        raise DataError(f"missing text: {error}") from error
    try:
        return prompter.dialogue(messages, num_recordings, str(sample_fields.get("task", "asr")))
    except DataError as error:
        raise DataError(f"unusable text: {error}") from error


