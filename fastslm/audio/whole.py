"""Matroska, AVI, ASF, VOC and SoX files by their bytes: whether those are there that their headers tell of.

FFmpeg reads what is there of them, and takes its end for the end of the recording.
"""

import struct
from collections.abc import Callable
from typing import BinaryIO

from .joined import matroska_end
from .streams import UNKNOWN_BYTES, UNKNOWN_LONG_BYTES, check_held, read_at, size_of

_RIFF_SLACK_BYTES = 8  # some programs count the head of a part as well
_ASF_DATA, _ASF_DATA_BYTES = b"\x36\x26\xb2\x75", 50  # begin of the object that holds the packets, its head
_VOC_END, _LAST_VOC_BLOCK = 0, 9
_SOX_SAMPLE_BYTES = 4


def check_whole(file: BinaryIO) -> None:
    """Raise DataError where a file is shorter than its header says; of other formats than these nothing is known."""
    head = read_at(file, 0, 8)
    for begin, told_end in _ENDS.items():
        if head.startswith(begin) and (told := told_end(file)) is not None:
            check_held(size_of(file), told)


def _avi_end(file: BinaryIO) -> int | None:
    """Return where the last of its parts ends: beyond a gigabyte there are several."""
    position = 0
    while (head := read_at(file, position, 8))[:4] == b"RIFF" and len(head) == 8:
        size = int.from_bytes(head[4:], "little")
        if not size or size >= UNKNOWN_BYTES:
            return None
        position += 8 + size  # without the byte that makes it even, which is often missing at the end
        position += size % 2 if read_at(file, position + size % 2, 4) == b"RIFF" else 0
    return position - _RIFF_SLACK_BYTES


def _asf_end(file: BinaryIO) -> int | None:
    """Return where the packets end, behind which an index may follow."""
    position = int.from_bytes(read_at(file, 16, 8), "little")
    head = read_at(file, position, _ASF_DATA_BYTES)
    size = int.from_bytes(head[16:24], "little")
    return position + size if head[:4] == _ASF_DATA and _ASF_DATA_BYTES < size < UNKNOWN_LONG_BYTES else None


def _voc_end(file: BinaryIO) -> int:
    position = int.from_bytes(read_at(file, 20, 2), "little")
    while len(head := read_at(file, position, 4)) == 4 and _VOC_END < head[0] <= _LAST_VOC_BLOCK:
        position += 4 + int.from_bytes(head[1:], "little")
    return position


def _sox_end(file: BinaryIO) -> int | None:
    head = read_at(file, 0, 16)
    if len(head) < 16:
        return None
    header_bytes, samples = struct.unpack("<4xIQ" if head[:1] == b"." else ">4xIQ", head)
    told = 4 + header_bytes + samples * _SOX_SAMPLE_BYTES
    return told if samples and told < UNKNOWN_LONG_BYTES else None  # none where it was written to a pipe


_ENDS: dict[bytes, Callable[[BinaryIO], int | None]] = {
    b"\x1aE\xdf\xa3": matroska_end,
    b"\x30\x26\xb2\x75": _asf_end,
    b"RIFF": _avi_end,
    b"Creative": _voc_end,
    b".SoX": _sox_end,
    b"XoS.": _sox_end,
}
