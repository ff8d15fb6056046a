"""NeMo manifests: JSON lines with ``audio_filepath``, ``offset``, ``duration``, ``text`` and whatever else."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from fastslm.errors import DataError

from ..naming import USUAL_NAMES, renamed, usual_columns
from ..times import take_times
from ..utterance import Audio, Noted, Refused, Utterance, stem
from ._doubts import doubts
from ._lines import first_object, json_lines, located
from .options import SourceOptions

_SEVERAL = ("audios", "audio_paths", "audio_files")  # of chats, as other trainers write them


def detect(path: str) -> bool:
    """Say whether this is a manifest: JSON lines that name an audio file."""
    return names_audio(first_object(path))


def names_audio(row: Iterable[str], column: str | None = None) -> bool:
    """Say whether a row has a column that is called as audio usually is, or ``column``."""
    return not {*USUAL_NAMES["audio"], column}.isdisjoint(row)


def read(path: str, options: SourceOptions) -> Iterator[Utterance | Refused | Noted]:
    """Yield the utterances of a manifest; relative paths start from its folder."""
    root = options.audio_root or os.path.dirname(os.path.abspath(path))
    return from_rows(json_lines(path), root, options)


def from_rows(
    rows: Iterable[tuple[str, dict[str, Any] | Refused]], root: str, options: SourceOptions
) -> Iterator[Utterance | Refused | Noted]:
    """Yield the utterances of rows, each with the place where it stands; relative paths start from ``root``."""
    for where, row in rows:
        if isinstance(row, Refused):
            yield row
            continue
        resolved = {**usual_columns(tuple(row)), **options.columns}
        fields = renamed(row, {name: c for name, c in resolved.items() if c in row})
        try:
            path = fields.get("audio")
            if "shard_id" in row and isinstance(path, str) and not os.path.exists(located(path, [root])):
                raise DataError(f"audio in a tar: the data set is tarred; unpack its tars so that {path} is there")
            yield (utterance := from_row(fields, where, [root]))
            yield from doubts(utterance, options.columns)
        except DataError as error:
            yield Refused.at(where, fields.get("id", "?"), error)


def from_row(fields: dict[str, Any], where: str, roots: list[str], stated: float | None = None) -> Utterance:
    """Return the utterance of a row under standard names; ``stated`` is a length of its file in an unknown unit.

    Raises:
        DataError: it names no audio, or its times are no numbers.
    """
    path = fields.pop("audio", None)
    if isinstance(path, dict):  # as Hugging Face's to_json writes a column of audio
        path = path.get("path")
    start, seconds = take_times(fields)
    key, group = fields.pop("id", None), fields.get("group")
    if fields.get("messages") is not None and path is None:
        several = next((name for name in _SEVERAL if fields.get(name)), None)
        if several:
            raise DataError(f"audio not taken: {several} names the recordings of messages; pack them into a tar")
        return Utterance(str(key or "dialogue"), [], fields, where)
    if isinstance(path, list) and len(path) > 1:
        raise DataError(f"several files in a row: {path!r:.80}; make one file of them, or a row of each")
    if not isinstance(path, str) or not path:
        raise DataError("missing audio: the row names no audio file")
    place = located(path, roots)
    if key in (None, ""):
        key = stem(place) if start is None else f"{stem(place)}-{round(start * 1000):09d}"
    audio = Audio(place, start, seconds, stated=stated)
    return Utterance(str(key), [audio], fields, where, None if group in (None, "") else str(group))
