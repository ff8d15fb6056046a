"""Hugging Face data sets on disk: folders of ``save_to_disk`` (arrow), and parquet, with the audio's bytes inside."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastslm.errors import ConfigError, DataError

from ..naming import check_columns, loose_length, renamed, resolve_columns, take_times
from ..table_cells import column_names, describe, open_table
from ..utterance import Audio, Refused, Utterance, stem
from ._lines import located
from .options import SourceOptions

_DECODED = re.compile(r"(large_|fixed_size_)?list<|struct<(.*, )?array: ")  # types of Arrow
_SPLIT_NAME = re.compile(r"(?P<split>[A-Za-z_.]+?)-\d+-of-\d+")


def detect(path: str) -> bool:
    """Say whether this is an arrow or parquet file, or a folder of them."""
    if os.path.isdir(path):
        return os.path.isfile(os.path.join(path, "dataset_dict.json")) or bool(_files(path))
    return path.endswith((".arrow", ".parquet"))


def _files(folder: str) -> list[str]:
    """Return the data files of a folder, in the order that the library gives them."""
    state = Path(folder, "state.json")
    if state.is_file():
        return [str(Path(folder, item["filename"])) for item in _list_in(state, "_data_files")]
    found = [p for pattern in ("*.arrow", "*.parquet", "data/*.parquet") for p in sorted(Path(folder).glob(pattern))]
    return [str(path) for path in found]


def _list_in(file: Path, name: str) -> list[Any]:
    """Return a list that ``save_to_disk`` wrote into a JSON file.

    Raises:
        DataError: it is not there.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[name]
        if isinstance(found, list) and all(isinstance(i, str) or isinstance(i["filename"], str) for i in found):
            return found
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: no {name!r} as save_to_disk writes it ({type(error).__name__}: {error}).") from error
    raise DataError(f"{file}: no {name!r} as save_to_disk writes it.")


def read(path: str, options: SourceOptions) -> Iterator[Utterance | Refused]:
    """Yield the rows of a data set.

    Raises:
        ConfigError: it holds several splits, or no column holds audio or text.
        DataError: a file is damaged.
        MissingExtraError: pyarrow is not installed.
    """
    if os.path.isfile(os.path.join(path, "dataset_dict.json")):
        splits = _list_in(Path(path, "dataset_dict.json"), "splits")
        choices = ", ".join(os.path.join(path, str(split)) for split in splits)
        raise ConfigError(f"{path}: holds several splits. Give one of {choices}.")
    files = _files(path) if os.path.isdir(path) else [path]
    splits = sorted({m["split"] for m in (_SPLIT_NAME.match(os.path.basename(f)) for f in files) if m} - {"data"})
    if len(splits) > 1:
        choices = ", ".join(repr(os.path.join(os.path.dirname(files[0]), f"{split}-*")) for split in splits)
        raise ConfigError(f"{path}: holds the splits {', '.join(splits)}. Give one of {choices}.")
    for file in files:
        yield from _rows(file, options)


def _rows(path: str, options: SourceOptions) -> Iterator[Utterance | Refused]:
    table = open_table(path)
    described = describe(table)
    names = column_names(table)
    resolved = resolve_columns(names, options.columns, path)
    if "audio" not in options.columns and described.audio is not None:
        resolved["audio"] = described.audio
    check_columns(resolved, names, path)
    if resolved.get("audio") and _DECODED.match(str(table.schema.field(resolved["audio"]).type)):
        raise DataError(
            f"{path}: column {resolved['audio']!r} holds decoded samples, and encoded audio (bytes or paths) is read."
            " Write it with an Audio column, such as by dataset.cast_column('audio', datasets.Audio())."
        )
    folder = os.path.dirname(os.path.abspath(path))
    roots, column = [options.audio_root or folder, os.path.dirname(folder)], resolved.get("audio", "")
    for i, (group, row, values, inside) in enumerate(table.rows(column, described.binary)):
        where = f"{path} row {i + 1}"
        fields = renamed({name: described.value(name, value) for name, value in values.items()}, resolved)
        given = fields.pop("audio", None)
        fields = {name: value for name, value in fields.items() if value is not None and not isinstance(value, bytes)}
        try:
            yield _utterance(fields, given, (column, group, row) if inside else None, where, path, roots)
        except DataError as error:
            yield Refused(where, str(fields.get("id", "?")), *str(error).partition(": ")[::2])


def _utterance(
    fields: dict[str, Any], given: Any, cell: tuple[str, int, int] | None, where: str, path: str, roots: list[str]
) -> Utterance:
    key, group = fields.pop("id", None), fields.get("group")
    stated = loose_length(fields)
    start, seconds = take_times(fields)
    name = str(given) if isinstance(given, str) and given else None
    if key in (None, ""):
        key = stem(name) if name else f"{stem(path)}-{where.rpartition(' ')[2]}"
    if cell is not None:
        audio = [Audio(path, start, seconds, cell=cell, stated=stated)]
    elif name:
        audio = [Audio(located(name, roots), start, seconds, stated=stated)]
    elif fields.get("messages") is not None:
        audio = []
    else:
        raise DataError("missing audio: the row holds neither bytes nor a path")
    return Utterance(str(key), audio, fields, where, None if group in (None, "") else str(group))
