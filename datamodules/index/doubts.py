"""Facts of a sample that are doubtful and no damage: its text and its audio may not belong together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastslm.audio.info import AudioInfo
from fastslm.errors import DataError
from fastslm.tasks import transcribing

from ..shards.times import stated_length, time_columns
from ..shards.utterance import Audio
from .columns import ShardRows

#: Characters of a transcript per second that no speaker stays below over so long, or reaches.
_FEWEST, _LONG_SECONDS, _MOST, _MOST_FREE = 0.5, 10.0, 40.0, 20
_TOLERANCE_SECONDS = 1.0
_CLIPPED_SHARE = 0.05
#: Reasons: what is in a tar and of no sample; and a sample whose audio is also another's.
LEFT_OUT, REPEATED = "members left out", "same sample twice"


def doubts(fields: Mapping[str, Any], recordings: Sequence[AudioInfo]) -> Iterator[DataError]:
    """Yield what is doubtful in a sample's files, or in its JSON beside them, as errors ``reason: detail``."""
    yield from (DataError(remark) for recording in recordings for remark in recording.remarks)
    if len(recordings) != 1:
        return
    seconds = recordings[0].seconds
    columns = time_columns(tuple(fields))
    try:  # as a build from the same tar asks
        stated = stated_length({name: fields[column] for name, column in columns.items()})
        if not Audio("", stated=stated).fits(seconds):
            said = ", ".join(f"{column} {fields[column]!r:.40}" for column in columns.values())
            yield DataError(f"other length than stated: its json says {said}, and the recording has {seconds:.2f} s")
    except DataError as error:
        yield error
    times = list(segment_times(fields.get("segments")))
    last = max((end for _, end in times if isinstance(end, float)), default=0.0)
    if last > seconds + _TOLERANCE_SECONDS:
        yield DataError(f"segments leave the recording: one ends at {last:g} s, of {seconds:.2f} s")
    unusable = next(filter(is_unusable, times), None)
    if unusable is not None:
        yield DataError(f"unusable segments: one lies from {unusable[0]!r:.40} to {unusable[1]!r:.40} s")


def segment_times(segments: Any) -> Iterator[tuple[Any, Any]]:
    """Yield begin and end of each segment: seconds as float, also where they are spelt as text; else what is there."""
    for segment in segments if isinstance(segments, list) else ():
        if isinstance(segment, dict):
            yield _seconds(segment.get("start")), _seconds(segment.get("end"))


def _seconds(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, int | float | str) else value
    except ValueError:
        return value


def is_unusable(times: tuple[Any, Any]) -> bool:
    """Say whether a segment has times that are none, or ends before it begins; one without times is only untimed."""
    given = [time for time in times if time is not None]
    return not all(isinstance(time, float) and time >= -_TOLERANCE_SECONDS for time in given) or given != sorted(given)


def audio_doubts(recordings: Sequence[npt.NDArray[np.int16]]) -> Iterator[str]:
    """Yield what is to be looked at in decoded audio, each of the form ``reason: detail``."""
    for samples in recordings:
        clipped = (np.count_nonzero(samples == 32767) + np.count_nonzero(samples == -32768)) / max(len(samples), 1)
        if clipped > _CLIPPED_SHARE:
            yield f"clipped audio: {clipped:.0%} of its samples are at full scale"
        elif not samples.any():
            yield "silent audio: all of its samples are 0"


def identities_of(rows: ShardRows) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return 64 bits of the content of each sample, and 64 bits of its recordings as they are encoded.

    A transcript is its recordings; other tasks may ask several things of one recording, so that their JSON counts.
    What has no recording is its JSON in both.
    """
    audio = rows["audio_size"].astype(np.uint64) << np.uint64(32) | rows["audio_crc32"].astype(np.uint64)
    text = rows["json_size"].astype(np.uint64) << np.uint64(32) | rows["json_crc32"].astype(np.uint64)
    sums = np.bitwise_xor.accumulate(np.concatenate([np.zeros(1, np.uint64), audio]))
    ends = rows["recording_end"]
    spoken = sums[ends] ^ sums[np.concatenate([np.zeros(1, np.int64), ends[:-1]])] if len(rows) else sums[:0]
    of_audio = _are_transcripts(rows) & (spoken != 0)
    whole = spoken * np.uint64(0x9E3779B97F4A7C15) ^ text
    return np.where(of_audio, spoken, whole), np.where(spoken != 0, spoken, whole)


def doubtful(rows: ShardRows) -> list[dict[str, str]]:
    """Return what is to be looked at in a shard: what its index says, and transcripts that do not fit their audio."""
    seconds, characters = rows.sample_seconds, rows["text_characters"]
    spoken = (rows.num_recordings > 0) & _are_transcripts(rows)
    few = spoken & (seconds > _LONG_SECONDS) & (characters < _FEWEST * seconds)
    many = spoken & (characters > _MOST_FREE + _MOST * seconds)
    found = [(few, "little text for its audio"), (many, "much text for its audio")]
    keys = rows.keys if (few | many).any() else []
    return rows.doubtful + [
        {"key": keys[row], "reason": reason, "detail": f"{characters[row]} characters for {seconds[row]:.1f} s"}
        for places, reason in found
        for row in np.flatnonzero(places).tolist()
    ]


def _are_transcripts(rows: ShardRows) -> npt.NDArray[np.bool_]:
    names = transcribing()
    return np.array([task in names for task in rows.labels("task")], bool)
