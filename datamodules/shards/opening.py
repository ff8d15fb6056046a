"""References to audio, opened: files, members of tars and cells of tables, all as one kind of file."""

import contextlib
import functools
import glob
import io
import os
from collections.abc import Iterator
from typing import BinaryIO

from fastslm.audio.info import AudioInfo
from fastslm.errors import DataError, FastSLMError
from fastslm.files import open_file

from ..index.scan import crc32_of
from ..reading.audio import open_region, read_info
from ..reading.store import TarState, tar_state
from .table_cells import open_table, read_cell
from .utterance import Audio

#: First bytes of the formats that shards hold, and the member extension of each.
_MAGIC = (
    (b"fLaC", "flac"),
    (b"RIFF", "wav"),
    (b"RF64", "wav"),
    (b"OggS", "ogg"),
    (b"ID3", "mp3"),
    (b"\x1aE\xdf\xa3", "webm"),
)


class SourceChangedError(FastSLMError):
    """A file is no longer what was listed: its places would give samples the audio of others."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} was changed or replaced while it was read, and samples would get the audio of others. What was"
            " finished before is kept; begin anew (--overwrite) when nobody writes to it."
        )


def modified(what: str, shard: str) -> DataError:
    """Return the error of a member that is not what the index beside its tar says."""
    return DataError(
        f"checksum differs: its {what} was modified after indexing; to take it as it is: fastslm shards index --force"
        f" {shard}"
    )


@contextlib.contextmanager
def opened(audio: Audio, *, verified: bool = False) -> Iterator[tuple[BinaryIO, str]]:
    """Open the recording that a reference points into, and say which extension its format has.

    Args:
        audio: the reference.
        verified: read a member of a tar once before, and compare it with the tar's index.

    Raises:
        DataError: it is missing, cannot be read, or was modified after it was indexed.
        SourceChangedError: its file, or the tar or table that holds it, is not the one that was found before.
    """
    if audio.cell is not None:
        if audio.container not in (None, open_table(audio.path).state):
            raise SourceChangedError(audio.path)
        data, path = read_cell(audio.path, *audio.cell)
        if not data and not path:
            raise DataError("missing audio: the cell holds neither bytes nor a path")
        if data:
            file = io.BytesIO(data)
            yield file, extension_of(file, path)
            return
        path = os.path.join(audio.root or os.path.dirname(audio.path), path)
    else:
        path = audio.path
    try:
        stream = open_file(path)
    except FileNotFoundError:
        beside = sorted(glob.glob(f"{glob.escape(path)}.*"))
        raise DataError(f"missing file: {path}{f'; {beside[0]} is there' if beside else ''}") from None
    except OSError as error:
        raise DataError(f"unreadable file: {path}: {error.strerror or error}") from error
    with stream:
        if audio.cell is None and audio.container not in (None, tar_state(stream.fileno())):
            raise SourceChangedError(path)
        try:
            if audio.region is not None:
                known = audio.crc32 if verified else None
                if known is not None and known != _crc32_in(path, audio.region, audio.container):
                    raise modified("audio", path)
                region = open_region(stream.fileno(), *audio.region)
                yield region, extension_of(region, "")
            else:
                yield stream, extension_of(stream, path)
        except OSError as error:
            raise DataError(f"unreadable file: {path}: {error.strerror or error}") from error


@functools.lru_cache(maxsize=64)
def _crc32_in(path: str, region: tuple[int, int], _state: TarState | None) -> int:
    """Return the checksum of a member of a tar, which is read once however many chunks are cut out of it."""
    with open_file(path) as file:
        return crc32_of(file.fileno(), region)


def extension_of(file: BinaryIO, path: str) -> str:
    """Return the extension of an encoded recording by its first bytes, and where they say nothing by its path."""
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    for magic, extension in _MAGIC:
        if head.startswith(magic):
            return "opus" if extension == "ogg" and path.lower().endswith(".opus") else extension
    if head[4:8] == b"ftyp":
        return "mp4" if path.lower().endswith(".mp4") else "m4a"
    suffix = os.path.splitext(path)[1].lower().removeprefix(".")
    if not suffix and len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return "mp3"
    return suffix


def info_of(audio: Audio) -> tuple[AudioInfo, int]:
    """Return what the header of a recording says, and how many bytes it has.

    Raises:
        DataError: it is missing, or no audio that can be read.
    """
    with opened(audio) as (file, _):
        info = read_info(file)
        file.seek(0, os.SEEK_END)
        return info, file.tell()


def state_of(audio: Audio) -> tuple[int, int]:
    """Return size and time of change of the file that holds a recording, zeros where it is missing."""
    try:
        status = os.stat(audio.path)
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns
