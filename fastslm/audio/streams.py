"""What lies in an audio file, whatever its header claims: streams end to end, the decoder of each, its true length.

A header's length is a hint: recorders die before they write it, 32 bits overflow, programs that write to a pipe do not
know it, and people put files end to end. Here the bytes are looked at, and not decoded.
"""

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast

from fastslm.audio.regions import Region
from fastslm.errors import DataError

_BLOCK_BYTES = 1 << 20
_MOST_TAGS = 100
#: By which a claim may be off before it is told, in seconds: encoders add a frame at the end of lossy files.
SLACK_SECONDS = 0.1
#: From here on, 32 bits are what programs put that did not know a length (ffmpeg, sox to a pipe).
UNKNOWN_BYTES = 0x7FFF0000
UNKNOWN_LONG_BYTES = 1 << 48  # the same of 64 bits
#: No recording is this long; numbers above are taken for nonsense, and never sized anything by.
LONGEST_SECONDS = 1e6


#: What begins tags that programs put behind the sound of a file, whatever its format has for them.
_TAGS = (b"APETAGEX", b"ID3", b"TAG", b"LYRICS", b"<?xpacket", b"LIST", b"id3 ", b"bext", b"iXML", b"_PMX", b"JUNK")


def is_tag(head: bytes) -> bool:
    """Say whether bytes behind the sound that a header tells of are a tag, and no sound."""
    return head.startswith(_TAGS)


@dataclass(frozen=True)
class Stream:
    """One of the streams that lie end to end in a file; most files are one.

    Attributes:
        file: its bytes as a file of its own, its header mended where that was needed.
        decoder: ``sound`` (libsndfile, whose length is then true) or ``av`` (FFmpeg, which reads to the end).
        claimed_seconds: what its own header says; None where that is nothing, or nonsense.
        why: what is wrong with its header, for people; empty where nothing is.
        begins_seconds: where in the recording that its header tells of it begins; what lies before is not in the file.
    """

    file: BinaryIO
    decoder: Literal["sound", "av"] = "sound"
    claimed_seconds: float | None = None
    why: str = ""
    begins_seconds: float = 0.0


class _Excerpt(Region):
    """Bytes of a file from ``begin`` on behind bytes of one's own; the file is left open.

    Args:
        file: seekable.
        begin: first byte taken.
        size: bytes taken.
        head: what comes before them.
    """

    def __init__(self, file: BinaryIO, begin: int, size: int, head: bytes) -> None:
        super().__init__(len(head) + size)
        self._file, self._begin, self._head = file, begin, head

    def _read_at(self, position: int, count: int) -> bytes:
        if position < len(self._head):
            return self._head[position : position + count]
        self._file.seek(self._begin + position - len(self._head))
        data = self._file.read(count)
        if not data and (error := getattr(getattr(self._file, "raw", self._file), "error", None)):
            raise error  # a region within a region
        return data


def excerpt(file: BinaryIO, begin: int, size: int, head: bytes = b"") -> BinaryIO:
    """Return bytes of a file from ``begin`` on behind ``head``, as a file; buffered, for decoders that read little."""
    return cast(BinaryIO, io.BufferedReader(_Excerpt(file, begin, size, head), _BLOCK_BYTES >> 2))


class Clamped:
    """A file for libsndfile and FFmpeg, which go to places before its begin or far behind its end where a header lies.

    It has no name, by which FFmpeg would take it for something else than the same bytes inside of a shard.

    Args:
        file: seekable.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, size_of(file)
        file.seek(0)
        self.read, self.readinto, self.tell = file.read, file.readinto, file.tell  # type: ignore[attr-defined]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place in the file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._size}[whence]
        return self._file.seek(min(max(0, base + offset), self._size))


def check_held(held: int, claimed: int) -> None:
    """Raise DataError where a file holds less than its header says, in bytes of samples."""
    if held < claimed:
        raise DataError(f"unreadable audio: it holds {held} of the {claimed} bytes that its header says")


def size_of(file: BinaryIO) -> int:
    """Return the bytes of a file."""
    return file.seek(0, os.SEEK_END)


def read_at(file: BinaryIO, position: int, count: int) -> bytes:
    """Return bytes from a place on, from the begin where it lies before that; none where no file is that long."""
    if position >= UNKNOWN_LONG_BYTES:
        return b""
    file.seek(max(0, position))
    return file.read(count)


def find_all(file: BinaryIO, pattern: "re.Pattern[bytes]", longest: int) -> Iterator[int]:
    """Yield where in a file a pattern of up to ``longest`` bytes occurs; the file is read once."""
    position, kept = 0, b""
    while block := read_at(file, position + len(kept), _BLOCK_BYTES):
        data = kept + block
        keep = min(len(data), longest - 1)
        for match in pattern.finditer(data):
            if match.end() > len(kept):  # one that lay in what was kept is known already
                yield position + match.start()
        position, kept = position + len(data) - keep, data[len(data) - keep :]


def after_id3(file: BinaryIO) -> int:
    """Return where a file begins behind its ID3v2 tags."""
    position = 0
    for _ in range(_MOST_TAGS):
        head = read_at(file, position, 10)
        if head[:3] != b"ID3" or len(head) < 10:
            break
        size = 0
        for byte in head[6:]:
            size = size << 7 | byte & 0x7F
        position += 10 + size + (10 if head[5] & 0x10 else 0)
    return position
