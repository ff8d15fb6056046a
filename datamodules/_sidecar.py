"""The sidecar index: ``shard.tar.index.npz`` beside ``shard.tar`` says what the tar holds and where; see docs/data.md.

``scan_tar`` reads a tar once and returns its rows, ``write_sidecar`` keeps them, ``read_sidecar`` gives them back,
``is_current`` compares them with the tar at the price of a look at its size and time, ``verify`` byte by byte.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastslm.errors import DataError
from fastslm.prompt import Prompter, messages_of

from ._audio import AudioInfo, decode, open_region, read_info
from ._columns import (
    FORMAT,
    FORMAT_VERSION,
    RECORDING_COLUMNS,
    SAMPLE_COLUMNS,
    ShardRows,
    TarState,
    coded,
    load_arrays,
    pack_keys,
    save_arrays,
)
from ._dialogues import count_ids, parse_fields, task_of, tokenizer_digest
from ._tar import AUDIO_EXTENSIONS, Broken, Member, Members, read_groups, recordings_of

SUFFIX = ".index.npz"
_BLOCK_BYTES = 1 << 20


def sidecar_path(shard: str) -> str:
    """Return where the index of a shard lies: beside it, path or URL."""
    return shard + SUFFIX


def tar_state(path: str) -> TarState:
    """Return size and time of a local tar.

    Raises:
        OSError: there is none.
    """
    status = os.stat(path)
    return TarState(status.st_size, status.st_mtime_ns)


# -- tar to rows ----------------------------------------------------------------------------------------------------


@dataclass
class _Row:
    """One sample on its way into the columns."""

    key: str
    json: tuple[int, int, int]
    task: str
    language: str
    text_characters: int
    text_tokens: int
    recordings: list[tuple[str, Member, int, AudioInfo]]


def scan_tar(path: str | os.PathLike[str], prompter: Prompter | None = None, tokenizer: str | None = None) -> ShardRows:
    """Read a local tar once, from end to end, and return its rows; samples that cannot be used are listed in them.

    Audio headers are read and checksums taken; audio is not decoded.

    Args:
        path: of the tar.
        prompter: counts the text of each sample in ids; without one the counts are left open (-1).
        tokenizer: a name for the prompter's tokenizer, for people; its digest is what is compared.

    Raises:
        DataError: the tar is missing, is no uncompressed tar, or holds no sample at all.
        MissingExtraError: it holds audio that needs the extra ``av``.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            with open(path, "rb") as buffered:
                groups, lost = read_groups(buffered, path)
            broken = [_finding(item) for item in lost]
            rows = []
            for key, members in groups.items():
                try:
                    rows.append(_row(key, members, file.fileno(), prompter))
                except DataError as error:
                    broken.append(_finding(Broken.of(path, key, error)))
    except OSError as error:
        raise DataError(f"shard {path}: {error.strerror or error}.") from error
    if not groups and not lost:
        raise DataError(f"shard {path}: holds no sample. Remove it from the list or build it anew.")
    state = TarState(status.st_size, status.st_mtime_ns)
    name = None if prompter is None else tokenizer or prompter.tokenizer.name_or_path
    digest = None if prompter is None else tokenizer_digest(prompter)
    return _in_columns(state, rows, broken, name, digest)


def _finding(item: Broken) -> dict[str, str]:
    return {"key": item.key, "reason": item.reason, "detail": item.detail}


def _row(key: str, members: Members, descriptor: int, prompter: Prompter | None) -> _Row:
    if "json" not in members:
        raise DataError("missing json: the sample has no .json member beside its audio")
    data = os.pread(descriptor, members["json"].size, members["json"].offset)
    fields = parse_fields(data)
    recordings = recordings_of(members)
    if not recordings and fields.get("messages") is None:
        raise DataError(f"missing audio: the sample has no member ending in {', '.join(AUDIO_EXTENSIONS)}")
    found = []
    for extension, member in recordings:
        info = read_info(open_region(descriptor, *member))
        found.append((extension, member, crc32_of(descriptor, member), info))
    try:
        messages = messages_of(fields)
    except DataError as error:
        raise DataError(f"missing text: {error}") from error
    return _Row(
        key,
        (*members["json"], zlib.crc32(data)),
        task_of(fields),
        str(fields.get("language") or ""),
        len(messages[-1]["content"].strip()),
        -1 if prompter is None else count_ids(fields, prompter, len(recordings)),
        found,
    )


def crc32_of(descriptor: int, region: Sequence[int]) -> int:
    """Return the CRC-32 (as in zip and gzip) of a region of a local file, read in blocks.

    Raises:
        DataError: the file ends before the region does.
    """
    offset, left, crc = region[0], region[1], 0
    while left > 0:
        block = os.pread(descriptor, min(left, _BLOCK_BYTES), offset)
        if not block:
            raise DataError("truncated shard: the sample runs past the end")
        crc = zlib.crc32(block, crc)
        offset, left = offset + len(block), left - len(block)
    return crc


def _in_columns(
    state: TarState, rows: Sequence[_Row], broken: list[dict[str, str]], tokenizer: str | None, digest: str | None
) -> ShardRows:
    recordings = [recording for row in rows for recording in row.recordings]
    key_bytes, key_end = pack_keys([row.key for row in rows])
    tasks, task_names = coded([row.task for row in rows])
    languages, language_names = coded([row.language for row in rows])
    extensions, extension_names = coded([extension for extension, *_ in recordings])
    codecs, codec_names = coded([info.codec for *_, info in recordings])
    values: dict[str, Any] = {
        "key_end": key_end,
        "recording_end": np.cumsum([len(row.recordings) for row in rows], dtype=np.int64),
        "json_offset": [row.json[0] for row in rows],
        "json_size": [row.json[1] for row in rows],
        "json_crc32": [row.json[2] for row in rows],
        "task_code": tasks,
        "language_code": languages,
        "text_characters": [row.text_characters for row in rows],
        "text_tokens": [row.text_tokens for row in rows],
        "audio_offset": [member.offset for _, member, _, _ in recordings],
        "audio_size": [member.size for _, member, _, _ in recordings],
        "audio_crc32": [crc for _, _, crc, _ in recordings],
        "num_frames": [info.num_frames for *_, info in recordings],
        "sample_rate_hz": [info.sample_rate_hz for *_, info in recordings],
        "num_channels": [info.num_channels for *_, info in recordings],
        "extension_code": extensions,
        "codec_code": codecs,
    }
    columns = {name: np.asarray(values[name], kind) for name, kind in {**SAMPLE_COLUMNS, **RECORDING_COLUMNS}.items()}
    names = {"task": task_names, "language": language_names, "extension": extension_names, "codec": codec_names}
    return ShardRows(state, {"key_bytes": key_bytes, **columns}, names, broken, tokenizer, digest)


# -- rows to file and back --------------------------------------------------------------------------------------------


def write_sidecar(path: str | os.PathLike[str], rows: ShardRows, target: str | os.PathLike[str] | None = None) -> Path:
    """Write the index of a shard; a reader sees the old file or the whole new one, never a part.

    Args:
        path: of the tar.
        rows: its index.
        target: where to write instead of beside the tar.

    Returns:
        The file written.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    destination = Path(target or sidecar_path(os.fspath(path)))
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "shard": os.path.basename(os.fspath(path)),
        "tar": asdict(rows.tar),
        "num_samples": len(rows),
        "num_recordings": len(rows["audio_offset"]),
        "tokenizer": rows.tokenizer,
        "tokenizer_digest": rows.tokenizer_digest,
        "names": rows.names,
        "broken": rows.broken,
    }
    save_arrays(destination, header, rows.columns)
    return destination


def read_sidecar(path: str | os.PathLike[str], target: str | os.PathLike[str] | None = None) -> ShardRows:
    """Return the index of a shard as it was written.

    Args:
        path: of the tar.
        target: the index itself, where it does not lie beside the tar.

    Raises:
        FileNotFoundError: there is no index.
        DataError: it is damaged, of another format or of a newer version.
    """
    source = Path(target or sidecar_path(os.fspath(path)))
    try:
        return parse_sidecar(source.read_bytes())
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
        rows = ShardRows(
            TarState(**header["tar"]),
            {name: arrays[name] for name in ("key_bytes", *SAMPLE_COLUMNS, *RECORDING_COLUMNS)},
            {name: list(header["names"][name]) for name in ("task", "language", "extension", "codec")},
            list(header["broken"]),
            header["tokenizer"],
            header["tokenizer_digest"],
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"damaged index: {type(error).__name__} {error}") from error
    return rows


# -- rows against tar -------------------------------------------------------------------------------------------------


def is_current(rows: ShardRows, state: TarState) -> bool:
    """Say whether size, time and the store's tag are those of the tar that was indexed; what is unknown is equal."""
    if rows.tar.size != state.size:
        return False
    pairs = ((rows.tar.etag, state.etag), (rows.tar.mtime_ns, state.mtime_ns))
    return all(known is None or found is None or known == found for known, found in pairs)


def verify(path: str | os.PathLike[str], rows: ShardRows, decode_audio: bool = False) -> Iterator[Broken]:
    """Yield everything in which a local tar differs from its index; nothing where it does not.

    Args:
        path: of the tar.
        rows: its index.
        decode_audio: also decode every recording to its end, which takes as long as an epoch of reading.

    Raises:
        DataError: the tar is missing, or is no uncompressed tar.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            groups, lost = read_groups(file, path)
            yield from lost
            known = {item["key"] for item in rows.broken}
            found = set()
            for row, key in enumerate(rows.keys):
                found.add(key)
                yield from (Broken.of(path, key, e) for e in _differences(file, rows, row, groups.get(key)))
                if decode_audio:
                    yield from _undecodable(file, path, key, rows, row)
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


def regions_of(rows: ShardRows, row: int) -> Iterator[tuple[str, tuple[int, int], int]]:
    """Yield extension, place and checksum of each member of a sample."""
    yield "json", (int(rows["json_offset"][row]), int(rows["json_size"][row])), int(rows["json_crc32"][row])
    for recording in rows.recordings(row):
        extension = rows.names["extension"][rows["extension_code"][recording]]
        region = (int(rows["audio_offset"][recording]), int(rows["audio_size"][recording]))
        yield extension, region, int(rows["audio_crc32"][recording])


def _undecodable(file: BinaryIO, path: str, key: str, rows: ShardRows, row: int) -> Iterator[Broken]:
    for _, region, _ in list(regions_of(rows, row))[1:]:
        try:
            decode(open_region(file.fileno(), *region))
        except DataError as error:
            yield Broken.of(path, key, error)
