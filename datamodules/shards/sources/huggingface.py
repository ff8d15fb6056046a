"""Hugging Face data sets on disk: folders of ``save_to_disk`` (arrow), and parquet, with the audio's bytes inside."""

import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fastslm.errors import ConfigError, DataError
from fastslm.files import walk

from ..naming import check_columns, renamed, resolve_columns
from ..table_cells import ParquetTable, describe, open_table
from ..times import loose_length, take_times
from ..utterance import Audio, Noted, Refused, Utterance, stem
from ._doubts import doubts
from ._lines import located, some
from ._splits import split_of
from .options import SourceOptions

_DECODED = re.compile(r"(large_|fixed_size_)?list<|struct<(.*, )?array: ")  # types of Arrow
_SEVERAL = re.compile(r"(large_|fixed_size_)?list<\w+: struct<(.*, )?bytes: ")
_NUMBERED = re.compile(r"(?P<split>.+?)-(?P<number>\d+)-of-(?P<total>\d+)(-[0-9a-f]{8,})?(?P<rest>\..*)?")
_TABLES = (".arrow", ".parquet")
_LARGE_GROUP_BYTES = 1 << 30


def detect(path: str) -> bool:
    """Say whether this is an arrow or parquet file, or a folder of them."""
    if os.path.isdir(path):
        return os.path.isfile(os.path.join(path, "dataset_dict.json")) or bool(_files(path))
    return path.endswith(_TABLES)


def _files(folder: str) -> list[str]:
    """Return the data files of a folder, in the order that the library gives them."""
    state = Path(folder, "state.json")
    if state.is_file():
        return [str(Path(folder, item["filename"])) for item in _list_in(state, "_data_files")]
    found = [p for pattern in ("*.arrow", "*.parquet", "data/*.parquet") for p in sorted(Path(folder).glob(pattern))]
    return [str(path) for path in found if not _is_cached(path)]


def _with_rows_of_before(folder: str) -> str:
    """Return what is wrong where the files of a folder hold rows that were deleted or changed; else an empty text."""
    marks = {
        "_delta_log": "Delta Lake",
        ".hoodie": "Hudi",
        ".hoodie_partition_metadata": "Hudi",
        "metadata/[v0-9]*.metadata.json": "Iceberg",
    }
    lowest = Path(os.path.abspath(folder))
    for table in (lowest, *lowest.parents):  # a table names the folders of its parts as it likes
        for mark, kind in marks.items():
            if any(table.glob(mark)):
                return (
                    f"is of a table of {kind} ({table}), whose files hold deleted rows, too: write its current rows as"
                    " parquet elsewhere."
                )
    if _is_selection(Path(folder, "state.json")):
        return "is a selection of rows by indices: load_from_disk(...).flatten_indices().save_to_disk(...) writes them."
    return ""


def _is_selection(state: Path) -> bool:
    """Say whether ``save_to_disk`` noted that some rows of the files beside are meant."""
    try:
        values = json.loads(state.read_bytes())
    except (OSError, ValueError, RecursionError):  # none, or of another program; where it is needed, _files says so
        return False
    return isinstance(values, dict) and bool(values.get("_indices_data_files"))


def _is_cached(path: Path) -> bool:
    """Say whether this is what ``map`` and ``filter`` of the library left: rows that the other files have, too."""
    return path.name.startswith("cache-") and path.suffix == ".arrow"


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


def read(path: str, options: SourceOptions) -> Iterator[Utterance | Refused | Noted]:
    """Yield the rows of a data set.

    Raises:
        ConfigError: it holds several splits, or no column holds audio or text.
        DataError: a file is damaged.
        MissingExtraError: pyarrow is not installed.
    """
    if other := _with_rows_of_before(path if os.path.isdir(path) else os.path.dirname(path)):
        raise ConfigError(f"{path}: {other}")
    if os.path.isfile(os.path.join(path, "dataset_dict.json")):
        splits = _list_in(Path(path, "dataset_dict.json"), "splits")
        choices = ", ".join(os.path.join(path, str(split)) for split in splits)
        raise ConfigError(f"{path}: holds several splits. Give one of {choices}.")
    if not os.path.isdir(path):
        yield from (Noted(*missing) for missing in _missing([path]))
        yield from _rows(path, options)
        return
    files = _files(path)
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(_split_of(file), []).append(file)
    named = sorted(by_split.keys() - {"", "data"})
    if len(named) > 1:
        choices = ", ".join(_pattern(split, by_split[split]) for split in named)
        raise ConfigError(f"{path}: holds the splits {', '.join(named)}. Give one of {choices}.")
    if named and by_split.get(""):
        detail = f"{some(map(os.path.basename, by_split['']))} read with {named[0]!r}"
        yield Noted(path, "?", "files that name no split", detail)
    yield from (Refused(*missing) for missing in _missing(files))
    yield from _left_out(path, files)
    for file in files:
        yield from _rows(file, options)


def _split_of(file: str) -> str:
    """Return the split that a file is of, by its name; an empty text where that names none."""
    name = os.path.basename(file)
    if numbered := _NUMBERED.fullmatch(name):
        return numbered["split"]
    return split_of(file)


def _pattern(split: str, files: Sequence[str]) -> str:
    """Return how the files of a split are given to the command."""
    if all(os.path.basename(file).startswith(f"{split}-") for file in files):
        return repr(os.path.join(os.path.dirname(files[0]), f"{split}-*"))
    return " ".join(map(repr, files))


def _missing(files: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield a finding for each set of files (``-00000-of-00003``) that begins with one of these and is not whole."""
    seen = set()
    for file in files:
        folder, name = os.path.split(file)
        match = _NUMBERED.fullmatch(name)
        if match is None or (numbered := (folder, *match.group("split", "total", "rest"))) in seen:
            continue
        seen.add(numbered)
        split, total, rest = match["split"], match["total"], match["rest"] or ""
        others = [m for m in map(_NUMBERED.fullmatch, os.listdir(folder or ".")) if m is not None]
        numbers = {int(m["number"]) for m in others if m.group("split", "total", "rest") == numbered[1:]}
        begin = int(0 not in numbers and int(total) in numbers)  # some count from 1
        absent = (n for n in range(begin, begin + int(total)) if n not in numbers)
        names = some(f"{split}-{n:0{len(match['number'])}d}-of-{total}{rest}" for n in absent)
        if names and int(match["number"]) == min(numbers, default=-1):
            detail = f"{int(total) - len(numbers)} of {int(total)} files are not there: {names}"
            yield os.path.join(folder, f"{split}-*-of-{total}{rest}"), "?", "missing file", detail


def _left_out(path: str, files: Sequence[str]) -> Iterator[Noted]:
    """Note the tables in a folder and below it that are not read."""
    read = {os.path.realpath(file) for file in files}
    found = [Path(below.path, name) for below in walk(path) for name in below.names if name.endswith(_TABLES)]
    cached = [file for file in found if _is_cached(file)]
    others = [file for file in found if not _is_cached(file) and os.path.realpath(file) not in read]
    for left, what in (
        (cached, "that the library made of others"),
        (others, "that may be read as sources of their own"),
    ):
        if left:
            names = some(str(file.relative_to(path)) for file in left)
            yield Noted(path, "?", "files left out", f"{len(left)} {what}: {names}")


def _rows(path: str, options: SourceOptions) -> Iterator[Utterance | Refused | Noted]:
    table = open_table(path)
    described = describe(table)
    partition = _partition(path)
    names = list(dict.fromkeys([*table.schema.names, *partition]))
    resolved = resolve_columns(names, options.columns, path)
    if "audio" not in options.columns and described.audio is not None:
        resolved["audio"] = described.audio
        for other in described.others:
            detail = f"column {described.audio!r} is taken, and {other!r} may hold audio, too; say which"
            yield Noted(path, "?", "two recordings", f"{detail}: --column audio={other}")
    check_columns(resolved, names, path)
    held = resolved.get("audio") in table.schema.names  # and not what a folder stands for
    kind = str(table.schema.field(resolved["audio"]).type) if held else ""
    if _SEVERAL.match(kind):
        raise DataError(
            f"{path}: column {resolved['audio']!r} holds lists of recordings, and one a row is read. Write a row of"
            " each."
        )
    if _DECODED.match(kind):
        raise DataError(
            f"{path}: column {resolved['audio']!r} holds decoded samples, and encoded audio (bytes or paths) is read."
            " Write it with an Audio column, such as by dataset.cast_column('audio', datasets.Audio())."
        )
    size = table.largest_group_bytes(described.audio or "") if isinstance(table, ParquetTable) else 0
    if size > _LARGE_GROUP_BYTES:  # said before the kernel ends a worker without a word
        print(
            f"Note: {path} has {size / 1e9:.1f} GB of audio in one row group, and each worker takes several times that"
            " memory. Write it anew with row_group_size=100, or take fewer --workers.",
            file=sys.stderr,
        )
    folder = os.path.dirname(os.path.abspath(path))
    roots, column = [options.audio_root or folder, os.path.dirname(folder)], resolved.get("audio", "")
    for i, (group, row, values, inside) in enumerate(table.rows(column, described.binary)):
        where = f"{path} row {i + 1}"
        of_row = {name: described.value(name, value) for name, value in values.items()}
        fields = renamed({**partition, **of_row}, resolved)
        given = fields.pop("audio", None)
        fields = {name: value for name, value in fields.items() if value is not None and not isinstance(value, bytes)}
        try:
            cell = (column, group, row) if inside else None
            utterance = _utterance(fields, given, cell, where, path, roots, options.audio_root)
            for audio in utterance.audio if cell else ():
                audio.container = table.state
            yield utterance
            yield from doubts(utterance, options.columns)
        except DataError as error:
            yield Refused.at(where, fields.get("id", "?"), error)


def _partition(path: str) -> dict[str, str]:
    """Return the columns that the folders right above a file stand for, as ``lang=de/part-0.parquet``."""
    folders = itertools.takewhile(lambda name: "=" in name, reversed(Path(path).absolute().parent.parts))
    pairs = (name.partition("=") for name in folders)
    return {name: unquote(value) for name, _, value in pairs if value != "__HIVE_DEFAULT_PARTITION__"}


def _utterance(
    fields: dict[str, Any],
    given: Any,
    cell: tuple[str, int, int] | None,
    where: str,
    path: str,
    roots: list[str],
    audio_root: str | None,
) -> Utterance:
    key, group = fields.pop("id", None), fields.get("group")
    stated = loose_length(fields)
    start, seconds = take_times(fields)
    name = str(given) if isinstance(given, str) and given else None
    if key in (None, ""):
        key = stem(name) if name else f"{stem(path)}-{where.rpartition(' ')[2]}"
    if cell is not None:
        audio = [Audio(path, start, seconds, cell=cell, root=audio_root, stated=stated)]
    elif name:
        audio = [Audio(located(name, roots), start, seconds, stated=stated)]
    elif fields.get("messages") is not None:
        audio = []
    else:
        raise DataError("missing audio: the row holds neither bytes nor a path")
    return Utterance(str(key), audio, fields, where, None if group in (None, "") else str(group))
