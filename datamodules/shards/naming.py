"""Rows of a source to the standard field names, by what columns are usually called or by ``--column NAME=COLUMN``."""

from collections.abc import Iterable, Mapping
from typing import Any

from fastslm.errors import ConfigError, DataError, nearest
from fastslm.tasks import tasks

#: Standard name, and what it is called elsewhere; the first that a row has is taken.
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "audio": ("audio", "audio_filepath", "path", "audio_path", "file", "filename", "file_name", "wav"),
    "text": ("text", "sentence", "transcript", "transcription", "normalized_text"),
    "speaker": ("speaker", "speaker_id", "client_id", "spk", "spk_id"),
    "language": ("language", "lang", "locale", "source_lang"),
    "id": ("id", "utt_id", "utterance_id", "sample_id", "key"),
    "group": ("chapter", "chapter_id", "recording_id", "session"),
    "offset": ("offset", "start", "start_time", "begin", "begin_time", "start_seconds", "start_sec", "start_s"),
    "end": ("end", "end_time", "stop", "stop_time", "end_seconds", "end_sec", "end_s"),
    "duration": ("duration", "duration_seconds", "duration_sec", "duration_s"),
    "offset_ms": ("offset_ms", "start_ms", "start_time_ms", "begin_ms"),
    "end_ms": ("end_ms", "end_time_ms", "stop_ms"),
    "duration_ms": ("duration_ms",),
}
#: Names of times; what they say is part of the audio and not of the sample.
TIMES = ("offset", "end", "duration", "offset_ms", "end_ms", "duration_ms")
_OTHERS = ("task", "target_language", "messages", "segments")


def known_names() -> list[str]:
    """Return the names that the command line may give; all other columns keep the name they have."""
    asked = [name for task in tasks().values() for name in (*task.needed_fields, task.answer_field)]
    return list(dict.fromkeys([*USUAL_NAMES, *_OTHERS, *asked]))


def parse_columns(pairs: Iterable[str]) -> dict[str, str]:
    """Return ``{"text": "sentence"}`` for ``["text=sentence"]``.

    Raises:
        ConfigError: a pair is none, or its name is unknown.
    """
    columns = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not equals or not column:
            raise ConfigError(f"--column {pair}: write NAME=COLUMN, such as --column text=sentence.")
        if name not in known_names():
            names = known_names()
            raise ConfigError(f"--column {pair}: {name!r} is none of {', '.join(names)}.{nearest(name, names)}")
        columns[name] = column
    return columns


def resolve_columns(known: Iterable[str], columns: Mapping[str, str], where: str) -> dict[str, str]:
    """Return which of a table's columns holds each standard name.

    Raises:
        ConfigError: a column that the command line names is not in the table.
    """
    known = list(known)
    for name, column in columns.items():
        if column not in known:
            raise ConfigError(
                f"--column {name}={column}: {where} has no column {column!r}, only {', '.join(known)}."
                f"{nearest(column, known)}"
            )
    usual = {name: next((c for c in names if c in known), None) for name, names in USUAL_NAMES.items()}
    return {name: column for name, column in {**usual, **columns}.items() if column is not None}


def check_columns(resolved: Mapping[str, str], known: Iterable[str], where: str) -> None:
    """Raise where a table has no column of audio, or none that could answer anything.

    Raises:
        ConfigError: so it is.
    """
    known = list(known)
    answered = {*resolved, *known} & {"messages", "segments", *(task.answer_field for task in tasks().values())}
    missing = [] if "audio" in resolved or "messages" in {*resolved, *known} else ["audio"]
    for name in missing or ([] if answered else ["text"]):
        raise ConfigError(
            f"{where}: no column is called as {name} usually is; it has {', '.join(known)}."
            f" Name it: --column {name}=COLUMN."
        )


def renamed(row: Mapping[str, Any], resolved: Mapping[str, str]) -> dict[str, Any]:
    """Return a row with its columns under their standard names; all others are kept as they are."""
    by_column: dict[str, list[str]] = {}
    for name, column in resolved.items():
        by_column.setdefault(column, []).append(name)
    fields = {}
    for column, value in row.items():
        for name in by_column.get(column, () if column in resolved else (column,)):
            fields[name] = value
    return fields


def take_times(fields: dict[str, Any]) -> tuple[float | None, float | None]:
    """Take the times out of a row under standard names, and return its offset and duration in seconds.

    Raises:
        DataError: they are no numbers, or contradict each other.
    """
    times: dict[str, float | None] = {}
    for name in TIMES[:3]:
        seconds, thousandths = number(fields.pop(name, None), name), number(fields.pop(f"{name}_ms", None), name)
        times[name] = seconds if thousandths is None else thousandths / 1000
    start, end, duration = (times[name] for name in TIMES[:3])
    if start is not None and start < 0:
        raise DataError(f"unusable fields: offset {start:g} is negative")
    if duration is not None and duration < 0:  # as NeMo writes where it does not know
        duration = None
    if end is None or end < 0:  # as Kaldi writes for the end of the file
        return start, duration
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
    if any(fields.get(name) not in (None, "") for name in ("offset", "end", "offset_ms", "end_ms")):
        return None
    stated = [number(fields.pop(name, None), name) for name in ("duration", "duration_ms")]
    return next((value for value in stated if value is not None and value > 0), None)


def number(value: Any, what: str) -> float | None:
    """Return a field as a finite number, None where it is absent or empty.

    Raises:
        DataError: it is no number.
    """
    if value is None or value == "":
        return None
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise DataError(f"unusable fields: {what} is {value!r:.40}, no number") from None
    if result != result or result in (float("inf"), float("-inf")):
        raise DataError(f"unusable fields: {what} is {value!r:.40}, no number")
    return result
