"""Recordings inside shards: a run of bytes of a local file as a file of its own, decoded by the core."""

import io
import os
import zlib
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from fastslm.audio import decoding
from fastslm.audio.info import AudioInfo
from fastslm.audio.regions import Region, reading

_BUFFER_BYTES = 1 << 18
_CRC_BLOCK_BYTES = 1 << 20


class FileRegion(Region):
    """A run of bytes inside a local file, as a file of its own.

    Args:
        descriptor: open file descriptor; it is not closed with the region.
        offset: first byte.
        size: bytes.
    """

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        super().__init__(size)
        self._descriptor, self._offset = descriptor, offset

    def _read_at(self, position: int, count: int) -> bytes:
        return os.pread(self._descriptor, count, self._offset + position)


def open_region(descriptor: int, offset: int, size: int) -> BinaryIO:
    """Return a run of bytes inside a local file, buffered: decoders read and seek in small steps."""
    return io.BufferedReader(FileRegion(descriptor, offset, size), _BUFFER_BYTES)


def crc32_of_file(file: BinaryIO) -> int:
    """Return the CRC-32 of a file's bytes, read in blocks; the file is left at its start.

    Raises:
        DataError: it cannot be read.
    """
    crc = 0
    file.seek(0)
    with reading(file):
        while block := file.read(_CRC_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    file.seek(0)
    return crc


def read_info(file: BinaryIO) -> AudioInfo:
    """Return what an audio file or region holds; see ``fastslm.audio.decoding.read_info``.

    Raises:
        DataError: its bytes cannot be read, or are no audio.
        MissingExtraError: it needs the extra ``av``.
    """
    with reading(file):
        return decoding.read_info(file)


def decode(
    file: BinaryIO,
    start_seconds: float = 0.0,
    stop_seconds: float | None = None,
    channel: int | None = None,
    remarks: list[str] | None = None,
) -> npt.NDArray[np.int16]:
    """Return int16 mono samples ``[N]`` at 16 kHz of a file or region, or of a part; see ``audio.decoding``.

    Raises:
        DataError: its bytes cannot be read, or cannot be decoded to their end.
        MissingExtraError: it needs the extra ``av``.
    """
    with reading(file):
        return decoding.decode(file, start_seconds, stop_seconds, channel, remarks)
