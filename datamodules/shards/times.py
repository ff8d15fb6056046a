"""The times of a row: what columns of them are called, and the stretch of audio that they mean."""

import contextlib
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from fastslm.errors import DataError

from .utterance import Utterance

#: Standard names of times; what they say is part of the audio and not of the sample.
TIMES = ("offset", "end", "duration", "offset_ms", "end_ms", "duration_ms")
_KINDS = {
    "offset": ("offset", "start", "begin", "beg", "xmin", "tmin", "onset"),
    "end": ("end", "stop", "xmax", "tmax"),
    "duration": ("duration", "dur", "length"),
}
_SAID = "sentence|sent|subtitle|sub|turn|line|caption|cue|phrase"
#: A name in small letters with ``_`` between its words: ``startTime`` is ``start_time``.
_NAME = re.compile(
    rf"((segment|seg|utterance|utt|time|t|{_SAID})_)?(?P<kind>{'|'.join(sum(_KINDS.values(), ()))})(_?time)?"
    r"(_(in_)?((?P<ms>ms|msecs?|millis|milliseconds?)|s|secs?|seconds?|((hh_)?mm_)?ss(_ms|_msecs?|_mmm)?))?"
)
_STARTS_AND_ENDS = frozenset(
    (*_KINDS["offset"], *_KINDS["end"], "starttime", "endtime", "tstart", "tend", "starts", "begins", "ends", "finish")
)
_EDGES = _STARTS_AND_ENDS | {"from", "to"}
_MARKS = frozenset(("in", "out"))  # of cutting lists, where the name ends so
#: With these beside it a start or an end is none of audio.
_OF_OTHERS = re.compile(
    "date|day|month|year|utc|timezone|zone|page|verse|chars?|tokens?|bytes?|is|has|count|reason|type|score|prob|confidence"
    "|num|words|x|y|lat|lon|punctuation|turns|id"
)
#: What may stand beside other words in the name of a time in a unit, or of a thing, that is not known here.
_BESIDE = re.compile(
    "times?|timestamps?|timecode|tc|interval|span|range|ts|t|s|secs?|seconds?|hh|mm|ss|msecs?|ms|us|ns|in|at|of|samples?|frames?"
    "|index|idx|position|pos|point|segment|seg"
    f"|utterance|utt|clip|cut|mark|audio|speech|word|video|chunk|{_SAID}"
)
_DURATIONS = ("duration", "duration_ms")
_LATEST_SECONDS = 1e15  # any recording ends before, in whatever unit
_MOMENTS = frozenset(
    ("t_0", "t_1", "s", "e", "bos", "eos", "st", "et", "bg", "ed", "left", "right", "inpoint", "outpoint")
)
_READING = r"\d+(:\d+)*([.,;]\d+)?"  # of any clock, also one that counts frames
_PAIR = re.compile(rf"[\[(]?\s*{_READING}\s*(-+>?|\u2013|to|[,;:])\s*{_READING}\s*[\])]?")
_USUAL_DURATIONS = ("duration", "duration_seconds", "duration_sec", "duration_s", "duration_ms")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
#: Hours, minutes and seconds, or the last two; a fourth group would be days or frames.
_CLOCK = re.compile(r"\d+(:[0-5]\d){1,2}([.,]\d+)?")


def _folded(name: str) -> str:
    return "_".join(_WORDS.findall(name)).lower() if name.isascii() else name


def time_columns(known: Sequence[str]) -> dict[str, str]:
    """Return which of some columns holds each time, by what it is called; of several, the plainest name is taken.

    A duration under an unusual name counts only where a begin is known: alone it is whatever a source says of a file.
    """
    found: dict[str, list[tuple[int, int, str]]] = {}
    named = {column: match for column in known if (match := _NAME.fullmatch(_folded(column)))}
    has_onset = any(match["kind"] == "onset" for match in named.values())
    for column, match in named.items():
        kind = next(kind for kind, words in _KINDS.items() if match["kind"] in words)
        if match["kind"] == "offset" and has_onset:  # annotations of sounds: from onset to offset
            found.setdefault("end_ms" if match["ms"] else "end", []).append((-1, len(column), column))
        else:
            rank = (_KINDS[kind].index(match["kind"]), len(column), column)
            found.setdefault(f"{kind}_ms" if match["ms"] else kind, []).append(rank)
    columns = {name: min(found[name])[-1] for name in TIMES if name in found}
    if has_onset and len(columns) == 1:  # a moment, and no stretch
        return {}
    if not {"offset", "offset_ms"} & columns.keys():
        columns = {name: c for name, c in columns.items() if not name.startswith("duration") or c in _USUAL_DURATIONS}
    return columns


def untaken(utterance: Utterance) -> Iterator[str]:
    """Remark on a field that looks like a time where the audio was not cut by it: the text may be of a part alone."""
    if not any(audio.start_seconds is None or audio.seconds is None for audio in utterance.audio):
        return
    for name, value in utterance.fields.items():
        like = _time_like(name)
        if not (like or isinstance(value, dict)):
            continue
        is_edge = like == "an edge" and _is_reading(value) and str(value) not in ("0", "1")  # flags
        if is_edge or _is_pair(value):
            hint = f"where it is in seconds: --column offset={name}"
            yield f"time not taken: {name} is {value!r:.40}, and cuts no audio; {hint}"
            return
    started = next((audio for audio in utterance.audio if audio.start_seconds is not None), None)
    if started is not None:
        yield f"stretch without an end: from {started.start_seconds:g} s on all of {started.path} is taken"


@functools.lru_cache(maxsize=1024)
def _time_like(name: str) -> Literal["", "an interval", "an edge"]:
    """Return what a column may be, by its name, if it is a time."""
    words = _folded(name).split("_")
    kept = [word for word in words if not (word.isdigit() or _BESIDE.fullmatch(word))]
    is_edge = not _STARTS_AND_ENDS.isdisjoint(kept[:1] + kept[-1:])  # and not in the midst of others
    if _folded(name) in _MOMENTS or (is_edge and not any(map(_OF_OTHERS.fullmatch, words))):
        return "an edge"
    if not all(map(_BESIDE.fullmatch, {*words[:-1], *({words[-1]} - _MARKS)} - _EDGES)):
        return ""
    return "an edge" if {*words} & _EDGES or words[-1] in _MARKS else "an interval"


def _is_pair(value: Any) -> bool:
    """Say whether a value is a begin and an end, in a list, in an object or as text."""
    if isinstance(value, dict):
        edges = [item for name, item in value.items() if _folded(str(name)) in _EDGES]
        return len(edges) == 2 and all(map(_is_reading, edges))
    if isinstance(value, str):
        return bool(_PAIR.fullmatch(value.strip())) and not _is_clock(value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):  # as of words, and there is one
        return _is_pair(value[0])
    return isinstance(value, list) and len(value) == 2 and all(map(_is_reading, value))


def _is_reading(value: Any) -> bool:
    """Say whether a value is a number, or what a clock of any kind shows."""
    try:
        return number(value, "") is not None
    except DataError:
        return re.fullmatch(_READING, str(value).strip()) is not None


def _take_from_and_to(fields: dict[str, Any]) -> None:
    """Call ``from`` and ``to`` what they are where they are times; as whole numbers they may be of verses or lines."""
    spelt = {name.lower(): name for name in fields if name.lower() in ("from", "to")}
    ends = [fields.get(name) for name in spelt.values()]
    is_taken = any(fields.get(name) not in (None, "") for name in ("offset", "end", "offset_ms", "end_ms"))
    if len(ends) == 2 and not is_taken and all(map(_is_reading, ends)) and any("." in str(end) for end in ends):
        fields["offset"], fields["end"] = fields.pop(spelt["from"]), fields.pop(spelt["to"])


def take_times(fields: dict[str, Any]) -> tuple[float | None, float | None]:
    """Take the times out of a row under standard names, and return its offset and duration in seconds.

    Raises:
        DataError: they are no numbers, contradict each other, or are an end alone.
    """
    _take_from_and_to(fields)
    times: dict[str, float | None] = {}
    for name in TIMES[:3]:
        times[name] = _seconds(fields.pop(name, None), fields.pop(f"{name}_ms", None), name)
    start, end, duration = (times[name] for name in TIMES[:3])
    if start is not None and not 0 <= start < _LATEST_SECONDS:
        raise DataError(f"unusable fields: offset {start:g} is negative, or no time in seconds")
    if duration is not None and duration < 0:  # as NeMo writes where it does not know
        duration = None
    if end is None or end < 0:  # as Kaldi writes for the end of the file
        return start, duration
    if start is None and duration is None:  # in lists of ends the begin is that of the row before
        raise DataError(
            f"unusable fields: the stretch ends at {end:g}, and nothing says where it begins; name the begins with"
            " --column offset=NAME, or write 0 where it is the begin of the file"
        )
    start = start or 0.0
    if end <= start:
        raise DataError(f"unusable fields: the stretch begins at {start:g} and ends at {end:g}")
    if duration is not None and abs(end - start - duration) > 0.01 + 0.01 * duration:
        raise DataError(f"unusable fields: {start:g} to {end:g} is no duration of {duration:g}")
    return start, end - start


def loose_length(fields: dict[str, Any]) -> float | None:
    """Take the duration out of a row that means its whole file; tables give it in seconds, milliseconds or samples.

    Raises:
        DataError: it is no number.
    """
    _take_from_and_to(fields)
    if any(fields.get(name) not in (None, "") for name in ("offset", "end", "offset_ms", "end_ms")):
        return None
    return _known_duration({name: fields.pop(name, None) for name in _DURATIONS})


def stated_length(times: Mapping[str, Any]) -> float | None:
    """Return how long a recording of its own is by its times, which may be those of a longer one that it was cut from.

    Raises:
        DataError: the duration is no number.
    """
    known = _known_duration(times)
    if known is None:
        with contextlib.suppress(DataError):  # they are no stretch, and ``untaken`` says so
            return take_times(dict(times))[1]
    return known


def _known_duration(times: Mapping[str, Any]) -> float | None:
    """Return the duration in seconds, or in a unit that nothing says; None where there is none above 0."""
    stated = _seconds(times.get("duration"), times.get("duration_ms"), "duration")
    return stated if stated is not None and stated > 0 else None


def _seconds(seconds: Any, thousandths: Any, what: str) -> float | None:
    """Return a time that is given in seconds, in thousandths of them, or in clock notation; None where it is not."""
    if thousandths in (None, ""):
        return number(seconds, what)
    value = number(thousandths, what)
    return value if value is None or _is_clock(thousandths) else value / 1000


def _is_clock(value: Any) -> bool:
    return _CLOCK.fullmatch(str(value).strip()) is not None


def number(value: Any, what: str) -> float | None:
    """Return a field as a finite number, clock notation (1:02:03.5) as seconds; None where it is absent or empty.

    Raises:
        DataError: it is no number.
    """
    if value is None or value == "":
        return None
    text = str(value).strip()
    try:
        if "_" in text:  # Python reads 1_0 as 10
            raise ValueError
        parts = text.replace(",", ".").split(":") if _is_clock(text) else [text]
        result = functools.reduce(lambda total, part: 60 * total + part, map(float, parts))
    except ValueError:
        result = math.nan
    if not math.isfinite(result):
        raise DataError(f"unusable fields: {what} is {value!r:.40}, no number of seconds and no time as H:MM:SS.s")
    return result
