"""Arrow and parquet files: their rows without the audio's bytes, and the bytes of one row when they are needed."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from fastslm.errors import DataError, MissingExtraError
from fastslm.files import open_file

from ..reading.store import TarState, tar_state
from .naming import USUAL_NAMES

_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Described:
    """What a file says of its columns.

    Attributes:
        audio: the column of type Audio, or of bytes under a usual name; None where there is none.
        others: further columns of type Audio, or of bytes and path where nothing says of what.
        binary: columns that hold encoded audio: bytes, or bytes and path.
        labels: names by number, of columns that hold class labels.
    """

    audio: str | None
    others: list[str]
    binary: dict[str, str]
    labels: dict[str, list[str]] = field(default_factory=dict)

    def value(self, name: str, value: Any) -> Any:
        """Return a cell with the name of its class where it is a class label."""
        names = self.labels.get(name)
        return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", extra="parquet", purpose="Reading Hugging Face data sets") from None
    return pyarrow


class ArrowTable:
    """A file of ``save_to_disk``: record batches in memory-mapped pages. The one row group is -1.

    Attributes:
        state: its size and time of change.
    """

    def __init__(self, path: str, state: TarState) -> None:
        pyarrow = _pyarrow()
        self.state = state
        source = pyarrow.memory_map(path)
        try:
            self.table = pyarrow.ipc.open_stream(source).read_all()
        except pyarrow.ArrowInvalid:
            source.seek(0)
            self.table = pyarrow.ipc.open_file(source).read_all()
        self.schema = self.table.schema

    def rows(self, audio: str, binary: dict[str, str]) -> Iterator[tuple[int, int, dict[str, Any], bool]]:
        """Yield row group, row, the values without bytes, and whether the audio's bytes are inside."""
        row = 0
        for batch in self.table.to_batches(max_chunksize=_BATCH_ROWS):
            for values, inside in _light(batch, audio, binary):
                yield -1, row, values, inside
                row += 1

    def cell(self, column: str, group: int, row: int) -> Any:
        """Return one value."""
        return self.table.column(column)[row].as_py()


class ParquetTable:
    """A parquet file; a row group is read whole, and the latest are kept.

    Attributes:
        state: its size and time of change.
    """

    def __init__(self, path: str, state: TarState) -> None:
        self.state = state
        self.file = _pyarrow().parquet.ParquetFile(path, memory_map=True)
        self.schema = self.file.schema_arrow
        self._groups: dict[tuple[str, int], Any] = {}

    def rows(self, audio: str, binary: dict[str, str]) -> Iterator[tuple[int, int, dict[str, Any], bool]]:
        """Yield row group, row, the values without bytes, and whether the audio's bytes are inside."""
        names = [name for name in self.schema.names if name not in binary]
        names += [f"{audio}.path"] if binary.get(audio) == "struct" else []
        for group in range(self.file.num_row_groups):
            row = 0
            for batch in self.file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=names):
                columns = batch.to_pylist() if names else [{}] * batch.num_rows
                for values in columns:
                    if isinstance(values.get(audio), dict):
                        values[audio] = values[audio].get("path")
                    yield group, row, values, audio in binary
                    row += 1

    def largest_group_bytes(self, column: str) -> int:
        """Return how many bytes the largest row group of a column holds, unpacked."""
        groups = map(self.file.metadata.row_group, range(self.file.num_row_groups))
        chunks = ([group.column(i) for i in range(group.num_columns)] for group in groups)
        sizes = ([c.total_uncompressed_size for c in row if c.path_in_schema.split(".")[0] == column] for row in chunks)
        return max(map(sum, sizes), default=0)

    def cell(self, column: str, group: int, row: int) -> Any:
        """Return one value."""
        if (column, group) not in self._groups:
            while len(self._groups) >= 2:
                self._groups.pop(next(iter(self._groups)))
            self._groups[column, group] = self.file.read_row_group(group, columns=[column]).column(column)
        return self._groups[column, group][row].as_py()


def _light(batch: Any, audio: str, binary: dict[str, str]) -> Iterator[tuple[dict[str, Any], bool]]:
    names = [name for name in batch.schema.names if name not in binary]
    rows = batch.select(names).to_pylist() if names else [{} for _ in range(batch.num_rows)]
    if audio not in binary:
        yield from ((row, False) for row in rows)
        return
    column = batch.column(audio)
    inside = column.is_valid().to_pylist()
    if binary[audio] == "struct":
        present = [name.name for name in column.type]
        inside = column.field("bytes").is_valid().to_pylist()
        paths = column.field("path").to_pylist() if "path" in present else [None] * len(rows)
        rows = [{**row, audio: path} for row, path in zip(rows, paths, strict=True)]
    yield from zip(rows, inside, strict=True)


Table = ArrowTable | ParquetTable


@lru_cache(maxsize=4)
def open_table(path: str) -> Table:
    """Return an arrow or parquet file, open; the latest few stay open.

    Raises:
        DataError: it is damaged or missing.
        MissingExtraError: pyarrow is not installed.
    """
    pyarrow = _pyarrow()
    try:
        with open_file(path) as file:  # a pipe would be waited for
            state = tar_state(file.fileno())
        return ParquetTable(path, state) if path.endswith(".parquet") else ArrowTable(path, state)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: unreadable table ({getattr(error, 'strerror', None) or error}).") from error


def read_cell(path: str, column: str, group: int, row: int) -> tuple[bytes | None, str]:
    """Return the bytes of a row's audio (None where it has only a path), and its path.

    Raises:
        DataError: the table cannot be read there.
    """
    pyarrow = _pyarrow()
    try:
        value = open_table(path).cell(column, group, row)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"unreadable audio: the table is damaged ({error})") from error
    if isinstance(value, dict):
        return value.get("bytes"), str(value.get("path") or "")
    return value, ""


def describe(table: Table) -> Described:
    """Return which columns hold audio and which hold class labels."""
    pyarrow = _pyarrow()
    twice = next((name for name in table.schema.names if table.schema.names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"two of its columns are called {twice!r}, and one alone can be meant. Rename one")
    binary = {}
    for item in table.schema:
        if pyarrow.types.is_binary(item.type) or pyarrow.types.is_large_binary(item.type):
            binary[item.name] = "bytes"
        elif pyarrow.types.is_struct(item.type) and "bytes" in {child.name for child in item.type}:
            binary[item.name] = "struct"
    features: dict[str, Any] = {}
    with contextlib.suppress(ValueError, KeyError, TypeError):  # files of other programs have no such note
        features = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"]
    marked = [name for name, kind in features.items() if isinstance(kind, dict) and kind.get("_type") == "Audio"]
    labels = {
        name: kind["names"]
        for name, kind in features.items()
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and kind.get("names")
    }
    usual = ("audio", "speech", "wav")
    candidates = [*(n for n in usual if n in marked), *marked, *(n for n in usual if n in binary)]
    if not candidates and not {*USUAL_NAMES["audio"]} & {*table.schema.names}:  # bytes may be anything
        candidates = [*binary]
    audio = candidates[0] if candidates else None
    alike = [name for name, kind in binary.items() if kind == "struct" and name not in features]
    return Described(audio, [name for name in (*marked, *alike) if name != audio], binary, labels)
