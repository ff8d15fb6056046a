"""The sidecar index: ``shard.tar.index.npz`` beside ``shard.tar`` says what the tar holds and where; see docs/data.md.

``write_sidecar`` keeps the rows that ``_scan`` finds in a tar and ``read_sidecar`` gives them back; ``is_current``
compares them with the tar at the price of a look at its size and time, ``verify`` byte by byte.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastslm.audio.streams import LONGEST_SECONDS
from fastslm.errors import DataError
from fastslm.files import open_file
from fastslm.path.broken import Broken
from fastslm.redaction import redacted

from ..reading.store import TarState, is_remote, tar_state
from ..reading.tar import Members, read_groups
from .columns import (
    FORMAT,
    FORMAT_VERSION,
    RECORDING_COLUMNS,
    SAMPLE_COLUMNS,
    ShardRows,
    load_arrays,
    save_arrays,
)
from .scan import crc32_of, scan_tar

SUFFIX = ".index.npz"


def sidecar_path(shard: str) -> str:
    """Return where the index of a shard lies: beside it, path or URL, of which the query stays at the end."""
    place, mark, query = shard.partition("?") if is_remote(shard) else (shard, "", "")
    return f"{place}{SUFFIX}{mark}{query}"


# -- rows to file and back --------------------------------------------------------------------------------------------


def write_sidecar(path: str | os.PathLike[str], rows: ShardRows, target: str | os.PathLike[str] | None = None) -> Path:
    """Write the index of a tar beside it, or to ``target``, and return the file.

    A reader sees the old file or the whole new one, never a part.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    destination = Path(target or sidecar_path(os.fspath(path)))
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "shard": redacted(os.path.basename(os.fspath(path).partition("?")[0])),
        "tar": asdict(rows.tar),
        "num_samples": len(rows),
        "num_recordings": len(rows["audio_offset"]),
        "tokenizer": rows.tokenizer,
        "tokenizer_digest": rows.tokenizer_digest,
        **({"prompts": rows.prompts} if rows.prompts else {}),
        "names": rows.names,
        "broken": rows.broken,
        **({"doubtful": rows.doubtful} if rows.doubtful else {}),
        "lengths": rows.lengths,
    }
    save_arrays(destination, header, rows.columns)
    return destination


def read_sidecar(path: str | os.PathLike[str]) -> ShardRows:
    """Return the index beside a tar as it was written.

    Raises:
        FileNotFoundError: there is no index.
        DataError: it is damaged, of another format or of a newer version.
    """
    source = Path(sidecar_path(os.fspath(path)))
    try:
        with open_file(source) as file:
            return parse_sidecar(file.read())
    except DataError as error:
        raise DataError(f"index {source}: {error}. Make it anew: fastslm shards index {os.fspath(path)}") from error


def parse_sidecar(data: bytes) -> ShardRows:
    """Return the index that a file's bytes hold.

    Raises:
        DataError: they are damaged, of another format or of a newer version.
    """
    header, arrays = load_arrays(data)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DataError("damaged index: it is no index of a shard")
    if header.get("version") != FORMAT_VERSION:
        raise DataError(f"format version {header.get('version')} where this program knows {FORMAT_VERSION}")
    try:
        num_samples, num_recordings = int(header["num_samples"]), int(header["num_recordings"])
        for kinds, length in ((SAMPLE_COLUMNS, num_samples), (RECORDING_COLUMNS, num_recordings)):
            for name, kind in kinds.items():
                if arrays[name].shape != (length,) or arrays[name].dtype != np.dtype(kind):
                    raise DataError(f"damaged index: column {name!r} is not {length} numbers of type {kind}")
        _check_values(arrays, header["names"], num_recordings, int(header["tar"]["size"]))
        rows = ShardRows(
            TarState(**header["tar"]),
            {name: arrays[name] for name in ("key_bytes", *SAMPLE_COLUMNS, *RECORDING_COLUMNS)},
            {name: list(map(str, header["names"][name])) for name in ("task", "language", "extension", "codec")},
            _remarks(header["broken"]),
            header["tokenizer"],
            header["tokenizer_digest"],
            {name: [str(prompt), str(answer)] for name, (prompt, answer) in dict(header.get("prompts", {})).items()},
            _remarks(header.get("doubtful", [])),
            str(header.get("lengths", "")),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"damaged index: {type(error).__name__} {error}") from error
    return rows


def _remarks(items: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    return [{name: str(item[name]) for name in ("key", "reason", "detail")} for item in items]


def _check_values(
    arrays: Mapping[str, Any], names: Mapping[str, Sequence[str]], num_recordings: int, tar_bytes: int
) -> None:
    """Raise DataError where columns contradict each other; the index may be of another program."""
    for name, end in (("key_end", len(arrays["key_bytes"])), ("recording_end", num_recordings)):
        ends = arrays[name]
        if (np.diff(ends, prepend=0) < 0).any() or (int(ends[-1]) if len(ends) else 0) != end:
            raise DataError(f"damaged index: column {name!r} does not rise to {end}")
    for name in ("task", "language", "extension", "codec"):
        codes = arrays[f"{name}_code"]
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(names[name]):
            raise DataError(f"damaged index: column '{name}_code' counts outside of 'names'")
    for name in ("json_offset", "json_size", "audio_offset", "audio_size", "num_frames"):
        if (arrays[name] < 0).any():
            raise DataError(f"damaged index: column {name!r} holds a number below 0")
    if (arrays["sample_rate_hz"] <= 0).any():
        raise DataError("damaged index: column 'sample_rate_hz' holds a number that is not above 0")
    for what in ("json", "audio"):  # sizes are read at once, and lengths are planned with
        if (arrays[f"{what}_size"] > tar_bytes - np.minimum(arrays[f"{what}_offset"], tar_bytes)).any():
            raise DataError(f"damaged index: column '{what}_size' reaches past the end of the tar")
    if (arrays["num_frames"] > LONGEST_SECONDS * arrays["sample_rate_hz"]).any():
        raise DataError("damaged index: column 'num_frames' holds a length that no recording has")


# -- rows against tar -------------------------------------------------------------------------------------------------


def is_current(rows: ShardRows, state: TarState) -> bool:
    """Say whether size, time and the store's tag are those of the tar that was indexed; what is unknown is equal."""
    if rows.tar.size != state.size:
        return False
    pairs = ((rows.tar.etag, state.etag), (rows.tar.mtime_ns, state.mtime_ns))
    return all(known is None or found is None or known == found for known, found in pairs)


def indexed_rows(path: str | os.PathLike[str]) -> ShardRows | None:
    """Return the index beside a tar; None where there is none, or it is damaged or not of this very file."""
    with contextlib.suppress(FileNotFoundError, DataError):
        rows = read_sidecar(path)
        if is_current(rows, tar_state(os.fspath(path))):
            return rows
    return None


def current_rows(path: str) -> ShardRows:
    """Return the rows of a shard: its index where there is one of this very tar, else the tar itself is read.

    Raises:
        DataError: the tar is missing or damaged.
    """
    rows = indexed_rows(path)
    return scan_tar(path) if rows is None else rows


def verify(path: str | os.PathLike[str], rows: ShardRows) -> Iterator[Broken]:
    """Yield everything in which a local tar differs from its index; nothing where it does not.

    Raises:
        DataError: the tar is missing, or is no uncompressed tar.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            groups, lost, *_ = read_groups(file, path)
            yield from lost
            known = {item["key"] for item in rows.broken}
            found = set()
            for row, key in enumerate(rows.keys):
                found.add(key)
                yield from (Broken.of(path, key, e) for e in _differences(file, rows, row, groups.get(key)))
            for key in groups.keys() - found - known:
                yield Broken(path, key, "not in the index", "the tar holds a sample that its index does not know")
    except OSError as error:
        raise DataError(f"shard {path}: {error.strerror or error}.") from error


def _differences(file: BinaryIO, rows: ShardRows, row: int, members: Members | None) -> Iterator[DataError]:
    if members is None:
        yield DataError("missing sample: the index knows it, the tar does not hold it")
        return
    places = {tuple(member) for member in members.values()}
    for what, region, crc in regions_of(rows, row):
        if region not in places:
            yield DataError(f"missing member: no {what} lies at byte {region[0]} as the index says")
        elif crc32_of(file.fileno(), region) != crc:
            yield DataError(f"checksum differs: the {what} at byte {region[0]} was modified after indexing")


def checksums_beside(path: str) -> dict[tuple[int, int], int]:
    """Return the checksum of each member that the index beside a tar knows, by its place; none without an index.

    Raises:
        DataError: the index is damaged, of another format or of a newer version.
    """
    try:
        rows = read_sidecar(path)
    except FileNotFoundError:
        return {}
    return {region: crc for row in range(len(rows)) for _, region, crc in regions_of(rows, row)}


def regions_of(rows: ShardRows, row: int) -> Iterator[tuple[str, tuple[int, int], int]]:
    """Yield extension, place and checksum of each member of a sample."""
    offset, size, crc32 = rows.json_region(row)
    yield "json", (offset, size), crc32
    for recording in rows.recordings(row):
        extension = rows.names["extension"][rows["extension_code"][recording]]
        region = (int(rows["audio_offset"][recording]), int(rows["audio_size"][recording]))
        yield extension, region, int(rows["audio_crc32"][recording])
