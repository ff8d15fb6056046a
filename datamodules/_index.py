"""What a tar shard holds, found once: where a sample's bytes lie, how long its audio is, how many ids its text has."""

import contextlib
import hashlib
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from fastslm.batch import Dialogue
from fastslm.errors import DataError
from fastslm.mel import SAMPLE_RATE_HZ
from fastslm.prompt import TASKS, Prompter, messages_of

from ._audio import open_region, read_info

AUDIO_EXTENSIONS = ("flac", "wav", "mp3", "ogg", "opus")
_FORMAT_VERSION = 2
#: Folders, name up to its first dot, extension; as in WebDataset, names that begin with a dot belong to no sample.
_SAMPLE_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<extension>[^/]+)", re.DOTALL)


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
        _FORMAT_VERSION, os.path.abspath(path), status.st_size, status.st_mtime_ns, asdict(limits), list(TASKS.items()),
        len(tokenizer), probe["input_ids"], prompter.enable_thinking,
    ]  # fmt: skip
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    stored = cache / "index" / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged: made anew below
        rows = json.loads(stored.read_text())
        return ShardIndex([_entry(row) for row in rows["entries"]], [Broken(**row) for row in rows["broken"]])
    index = index_shard(path, prompter, limits)
    try:
        stored.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=stored.parent, delete=False, suffix=".partial") as file:
            json.dump(asdict(index), file)
        os.replace(file.name, stored)
    except OSError as error:
        raise DataError(f"cannot keep the index in {stored.parent}: {error}. Set data.cache_dir.") from error
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
        DataError: the shard cannot be read or holds no sample at all, or a recording is too long and the limits say
            ``error``.
    """
    index = ShardIndex()
    try:
        groups = _grouped(path, index.broken)
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"shard {path}: {error.strerror}.") from error
    if not groups and not index.broken:
        raise DataError(f"shard {path}: holds no sample. Remove it from the list or build it anew.")
    try:
        for key, members in groups.items():
            try:
                index.entries += _entries(path, key, members, descriptor, prompter, limits)
            except DataError as error:
                if limits.long_audio == "error" and str(error).startswith("audio too long"):
                    raise DataError(f"shard {path}, sample {key!r}: {error}") from error
                what, _, detail = str(error).partition(": ")
                index.broken.append(Broken(path, key, what, detail))
    finally:
        os.close(descriptor)
    return index


#: Offset and size of each member of a sample, by extension.
Members = dict[str, tuple[int, int]]


def _grouped(path: str, broken: list[Broken]) -> dict[str, Members]:
    """Return the members of each sample; adds what a damaged or ambiguous tar lost to ``broken``."""
    groups: dict[str, Members] = {}
    latest: dict[str, Members] = {}  # differs from groups where a key came again: its second members go together
    size = os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                match = _SAMPLE_MEMBER.fullmatch(member.name)
                if match is None or not member.isfile():
                    continue
                key, extension = match["key"], match["extension"].lower()
                if member.offset_data + member.size > size:  # nothing can follow
                    broken.append(Broken(path, key, "truncated shard", f"{member.name} runs past the end"))
                    groups.pop(key, None)
                    return groups
                if extension in latest.setdefault(key, groups.setdefault(key, {})):
                    broken.append(Broken(path, key, "duplicate key", f"{member.name} comes again; the first is kept"))
                    latest[key] = {}
                latest[key][extension] = (member.offset_data, member.size)
            with open(path, "rb") as file:
                file.seek(tar.offset)
                end = file.read(tarfile.BLOCKSIZE)
    except tarfile.TarError as error:
        if not groups:
            raise DataError(f"shard {path}: not an uncompressed tar ({error}).") from error
        broken.append(Broken(path, "?", "truncated shard", str(error)))
        return groups
    if end != tarfile.NUL * tarfile.BLOCKSIZE:  # where tarfile just stops
        what = "damaged" if len(end) == tarfile.BLOCKSIZE else "cut"
        broken.append(Broken(path, "?", "truncated shard", f"{what} at byte {tar.offset}, samples behind it are lost"))
    return groups


def _entries(path: str, key: str, members: Members, descriptor: int, prompter: Prompter, limits: Limits) -> list[Entry]:
    if "json" not in members:
        raise DataError("missing json: the sample has no .json member beside its audio")
    sample_fields = read_fields(descriptor, members["json"])
    regions = [members[e] for e in sorted(members, key=_by_number) if e.rpartition(".")[2] in AUDIO_EXTENSIONS]
    infos = [read_info(open_region(descriptor, *region)) for region in regions]
    if not regions and sample_fields.get("messages") is None:
        raise DataError(f"missing audio: the sample has no member ending in {', '.join(AUDIO_EXTENSIONS)}")
    num_samples = [info.num_samples for info in infos]
    longest = max(num_samples, default=0) / SAMPLE_RATE_HZ
    if longest <= limits.max_audio_seconds:
        dialogue = dialogue_of(sample_fields, prompter, len(regions))
        return [Entry(path, key, members["json"], regions, num_samples, len(dialogue.input_ids))]
    if limits.long_audio != "split" or not _can_split(sample_fields, regions):
        raise DataError(
            f"audio too long: {longest:.1f} s is above data.max_audio_seconds {limits.max_audio_seconds:g}; raise it,"
            " or set data.long_audio to 'split' (for transcripts with 'segments') or 'drop'"
        )
    pieces = []
    for part, (first, last, begin, end) in enumerate(split_segments(sample_fields["segments"], limits, longest)):
        dialogue = dialogue_of({**sample_fields, "text": joined(sample_fields, (first, last))}, prompter, 1)
        samples = round((end - begin) * SAMPLE_RATE_HZ)
        text_ids = len(dialogue.input_ids)
        place = (path, f"{key}/{part}", members["json"], regions)
        pieces.append(Entry(*place, [samples], text_ids, segments=(first, last), span_seconds=(begin, end)))
    return pieces


def _by_number(extension: str) -> list[tuple[int, str]]:
    """Sort ``10.flac`` behind ``9.flac``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", extension)]


def _can_split(sample_fields: dict[str, Any], regions: Sequence[tuple[int, int]]) -> bool:
    # A summary or an answer belongs to the whole recording, a transcript to its segments.
    transcript = sample_fields.get("messages") is None and (sample_fields.get("task") or "asr") == "asr"
    return transcript and len(regions) == 1 and bool(sample_fields.get("segments"))


def split_segments(segments: Any, limits: Limits, duration: float) -> list[tuple[int, int, float, float]]:
    """Return pieces of a long recording as (first segment, one past the last, begin, end in seconds).

    A piece takes as many whole segments as fit; it begins and ends in the middle of the gaps between segments.

    Args:
        segments: from the sample's JSON: a list of ``start`` and ``end`` in seconds and ``text``.
        limits: of a piece.
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


def joined(sample_fields: dict[str, Any], segments: tuple[int, int]) -> str:
    """Return the words of a run of segments, as its first and one past its last."""
    return " ".join(segment["text"].strip() for segment in sample_fields["segments"][slice(*segments)])


def dialogue_of(sample_fields: dict[str, Any], prompter: Prompter, num_recordings: int) -> Dialogue:
    """Return the dialogue of a sample's fields.

    Raises:
        DataError: the text is missing or does not fit the recordings.
    """
    try:
        messages = messages_of(sample_fields)
    except DataError as error:
        raise DataError(f"missing text: {error}") from error
    task = sample_fields.get("task") or ("asr" if sample_fields.get("messages") is None else "dialogue")
    try:
        return prompter.dialogue(messages, num_recordings, str(task))
    except DataError as error:
        raise DataError(f"unusable text: {error}") from error
