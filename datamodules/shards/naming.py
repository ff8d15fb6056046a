"""Rows of a source to the standard field names, by what columns are usually called or by ``--column NAME=COLUMN``."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from fastslm.errors import ConfigError, nearest
from fastslm.tasks import tasks

from .times import TIMES, time_columns

#: Standard name, and what it is called elsewhere; the first that a row has is taken.
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "audio": ("audio", "audio_filepath", "path", "audio_path", "file", "filename", "file_name", "wav"),
    "text": ("text", "sentence", "transcript", "transcription", "normalized_text"),
    "speaker": ("speaker", "speaker_id", "client_id", "spk", "spk_id"),
    "language": ("language", "lang", "locale", "source_lang", "src_lang"),
    "id": ("id", "utt_id", "utterance_id", "sample_id", "key"),
    "group": ("chapter", "chapter_id", "recording_id", "session"),
}
_OTHERS = ("task", "target_language", "messages", "segments")


def known_names() -> list[str]:
    """Return the names that the command line may give; all other columns keep the name they have."""
    asked = [name for task in tasks().values() for name in (*task.needed_fields, task.answer_field)]
    return list(dict.fromkeys([*USUAL_NAMES, *TIMES, *_OTHERS, *asked]))


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
    return {**usual_columns(tuple(known)), **columns}


@lru_cache(maxsize=1024)
def usual_columns(known: tuple[str, ...]) -> Mapping[str, str]:
    """Return which of some columns holds each standard name, by what it is usually called."""
    usual = {name: next((c for c in names if c in known), None) for name, names in USUAL_NAMES.items()}
    return {name: column for name, column in usual.items() if column is not None} | time_columns(known)


def check_columns(resolved: Mapping[str, str], known: Iterable[str], where: str) -> None:
    """Raise ConfigError where a table has no column of audio, or none that could answer anything."""
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
