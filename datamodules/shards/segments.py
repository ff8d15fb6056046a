"""The ``segments`` of a recording: which words are spoken when, and where between them nobody speaks."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from fastslm.errors import DataError

from ..index.doubts import is_unusable, segment_times
from .utterance import TOLERANCE_SECONDS, letters_of


class Gap(NamedTuple):
    """What lies before, between or behind segments, in seconds; a cut may fall anywhere in it.

    Attributes:
        after: how many segments come before it.
        begin: where the segments before it have all ended; of the first, the begin of the recording.
        end: where the next one begins; of the last, the end of the recording.
    """

    after: int
    begin: float
    end: float


def gaps_of(segments: Any, total_seconds: float) -> list[Gap]:
    """Return the gaps in which nobody speaks, in order: before the segments, between them, and behind them.

    Raises:
        DataError: the segments have no times or texts, are out of order, or leave the recording.
    """
    try:
        times = [(float(segment["start"]), float(segment["end"])) for segment in segments]
    except (TypeError, ValueError, KeyError):
        raise DataError("unusable segments: each needs 'start' and 'end' in seconds") from None
    if any(not 0.0 <= begin <= end for begin, end in times) or any(a[0] > b[0] for a, b in pairwise(times)):
        raise DataError("unusable segments: they are not in order of time")
    if times and max(end for _, end in times) > total_seconds + TOLERANCE_SECONDS:
        raise DataError(f"unusable segments: they leave the recording of {total_seconds:.2f} s")
    gaps, latest = [], 0.0
    for after, (following, end) in enumerate([*times, (total_seconds, total_seconds)]):
        latest = min(latest, total_seconds)
        if following >= latest:
            gaps.append(Gap(after, latest, min(following, total_seconds)))
        latest = max(latest, end)
    return gaps


def check_inside(segments: Any, total_seconds: float) -> list[str]:
    """Raise where segments leave their recording or end before they begin, and remark on times that are none.

    What else they are is asked where they are used; segments without times are words alone.

    Raises:
        DataError: so it is.
    """
    remarks: list[str] = []
    for begin, end in segment_times(segments):
        if isinstance(end, float) and end > total_seconds + TOLERANCE_SECONDS:
            raise DataError(f"unusable segments: one ends at {end:g} s, in a recording of {total_seconds:.2f} s")
        if is_unusable((begin, end)):
            detail = f"unusable segments: one lies from {begin!r:.40} to {end!r:.40} s"
            if isinstance(begin, float) and isinstance(end, float):
                raise DataError(detail)
            remarks = remarks or [f"{detail}; no chunk can be cut at it"]
    return remarks


def spell(segments: Any, name: str, text: Any) -> bool:
    """Say whether a field of the segments has, together, the words of a text (spaces, signs and case aside)."""
    if not isinstance(segments, list) or not all(
        isinstance(s, dict) and isinstance(s.get(name), str) for s in segments
    ):
        return False
    return letters_of("".join(segment[name] for segment in segments)) == letters_of(str(text or ""))


def shifted(segments: Sequence[dict[str, Any]], by_seconds: float, limit_seconds: float) -> list[dict[str, Any]]:
    """Return segments moved in time, rounded to milliseconds and kept between 0 and ``limit_seconds``."""

    def moved(value: Any) -> float:
        return round(min(max(float(value) + by_seconds, 0.0), limit_seconds), 3)

    return [{**segment, "start": moved(segment["start"]), "end": moved(segment["end"])} for segment in segments]


def at_speed(fields: dict[str, Any], speed: float) -> dict[str, Any]:
    """Return a sample's fields with the times of its ``segments`` as they are where it is played at another speed."""
    segments = fields.get("segments")
    if speed == 1.0 or not isinstance(segments, list):
        return fields
    return {**fields, "segments": [_timed_at(segment, speed) for segment in segments]}


def _timed_at(segment: Any, speed: float) -> Any:
    if not isinstance(segment, dict):
        return segment
    ((begin, end),) = segment_times([segment])
    times = {"start": begin, "end": end}
    return {**segment, **{n: round(t / speed, 3) for n, t in times.items() if isinstance(t, float)}}
