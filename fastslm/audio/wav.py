"""WAV files by their bytes: sizes that were never updated or have overflown, and files put end to end."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from .ffmpeg import has_av
from .streams import (
    SLACK_SECONDS,
    UNKNOWN_BYTES,
    UNKNOWN_LONG_BYTES,
    Stream,
    check_held,
    excerpt,
    is_tag,
    read_at,
    size_of,
)

_FORMS = (b"RIFF", b"RF64", b"BW64")
_SOUND_FORMATS = {1, 2, 3, 6, 7, 0x11, 0x31}  # of which libsndfile gives every sample: PCM, float, G.711, ADPCM, GSM
_EXTENSIBLE = 0xFFFE
_MANY_SAMPLES = (2, 0x11, 0x31)  # in a block: ADPCM, GSM
_GSM = 0x31  # of which libsndfile takes the byte that pads an odd number of bytes for another block
_MOST_CHUNKS = 1000  # that are gone through; zeros, too, are chunks without end
_CHUNKS = (b"LIST", b"id3 ", b"bext", b"iXML", b"_PMX", b"JUNK")  # that tags come in, where they are whole
_BLOCK_BYTES = 1 << 20
_PADDING_BYTES = 4096  # zeros at the end: some programs fill a block of the disk


@dataclass
class _Data:
    """The samples of one WAV: its fmt chunk, where they begin, how many bytes its header claims.

    From ``unknown_bytes`` on a claim is none.
    """

    fmt: bytes
    begin: int
    claimed: int
    unknown_bytes: int

    @property
    def block_bytes(self) -> int:
        """What the samples come in: one of each channel, or as many as a compressed block holds."""
        return max(1, int.from_bytes(self.fmt[20:22], "little"))

    @property
    def byte_rate(self) -> int:
        """Bytes of a second; the header is believed only where it alone can tell."""
        rate, stated = struct.unpack("<II", self.fmt[12:20])
        plain = int(rate) * self.block_bytes
        return min(int(stated) or plain, plain) if self.format in _MANY_SAMPLES else plain

    @property
    def format(self) -> int:
        """How the samples are encoded, by the numbers of Microsoft."""
        place = 8 + 24 if self.fmt[8:10] == struct.pack("<H", _EXTENSIBLE) else 8
        return int.from_bytes(self.fmt[place : place + 2], "little")


def is_wav(head: bytes) -> bool:
    """Say whether a file begins as a WAV, by its first 12 bytes."""
    return head[:4] in _FORMS and head[8:12] == b"WAVE"


def wav_streams(file: BinaryIO) -> Iterator[Stream]:
    """Yield the WAVs that lie end to end in a file.

    Raises:
        DataError: the last one breaks off before its header says.
    """
    end, begin = size_of(file), 0
    while begin is not None:
        data = _find_data(file, begin, end)
        if data is None:  # such as one whose chunks are in another order
            own = file if not begin else excerpt(file, begin, end - begin)
            yield Stream(own, "av" if has_av() and _has_chunks(file, begin, end) else "sound")
            return
        left = end - data.begin
        unknown = data.claimed >= data.unknown_bytes or data.claimed == 0
        if not unknown:
            check_held(left, data.claimed)
        is_foreign = data.format not in _SOUND_FORMATS or read_at(file, 0, 4) == b"BW64"  # to libsndfile
        if is_foreign and not begin:
            yield Stream(file, "av")
            return
        following = _following(file, begin, data.begin + data.claimed, end) if data.claimed <= left else None
        tail = left - data.claimed
        if following is None and data.claimed and 0 <= tail < SLACK_SECONDS * data.byte_rate:
            following = end  # a few bytes of rubbish are no audio
        if following is not None:
            whole = begin == 0 and following == end
            seconds = data.claimed / data.byte_rate
            own = file if whole else excerpt(file, begin, following - begin)
            if data.format == _GSM:
                held = data.claimed - data.claimed % data.block_bytes
                own = excerpt(file, data.begin, held, _header(data, held))
            yield Stream(own, claimed_seconds=seconds)
            begin = following if following < end else None  # type: ignore[assignment]
            continue
        held = left - left % data.block_bytes
        claimed = None if data.claimed > left else data.claimed / data.byte_rate
        why = "" if claimed is None else "its WAV header was not updated or has overflown"
        yield Stream(excerpt(file, data.begin, held, _header(data, held)), claimed_seconds=claimed, why=why)
        return


def _chunks(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, place and size of the chunks of the WAV at ``begin``, as far as their sizes lead."""
    position = begin + 12
    for _ in range(_MOST_CHUNKS):
        if position + 8 > end:
            return
        name, size = struct.unpack("<4sI", read_at(file, position, 8))
        yield name, position, size
        position += 8 + size + size % 2


def _find_data(file: BinaryIO, begin: int, end: int) -> _Data | None:
    """Return where the samples of the WAV at ``begin`` are, None where it has no proper header."""
    fmt, long_size = b"", None
    for name, position, size in _chunks(file, begin, end):
        if name == b"fmt " and 14 <= size < 1 << 16:
            fmt = read_at(file, position, 8 + size)
        elif name == b"ds64" and size >= 24:
            long_size = struct.unpack("<Q", read_at(file, position + 16, 8))[0]
        elif name == b"data":
            if len(fmt) < 22:
                return None
            claimed = long_size if long_size is not None and size == 0xFFFFFFFF else size
            limit = UNKNOWN_BYTES if claimed == size else UNKNOWN_LONG_BYTES
            data = _Data(fmt, position + 8, claimed, limit)
            return data if data.byte_rate else None
    return None


def _has_chunks(file: BinaryIO, begin: int, end: int) -> bool:
    """Say whether a WAV has a format and samples at all; libsndfile says what is wrong with others."""
    return {b"fmt ", b"data"} <= {name for name, _, _ in _chunks(file, begin, end)}


def _following(file: BinaryIO, begin: int, position: int, end: int) -> int | None:
    """Return where chunks behind the samples end: at the next WAV or the end of the file; None where none are there.

    A tag that is no chunk, or a chunk that says more than there is, goes on to the end. So do zeros behind what the
    header at ``begin`` says of the whole file: it was closed, and they fill a disk. Sizes past 4 GiB say nothing.
    """
    closed = begin + 8 + int.from_bytes(read_at(file, begin + 4, 4), "little") if end - begin < 1 << 32 else -1
    for start in {position + position % 2, position}:
        place = start
        for _ in range(_MOST_CHUNKS):
            if end - place < 8:
                return end
            head = read_at(file, place, 12)
            if is_wav(head):
                return place
            rest = read_at(file, place, _PADDING_BYTES + 1)
            if (
                not any(rest)
                and (len(rest) <= _PADDING_BYTES or place - closed in (0, 1))
                and _is_zeros(file, place, end)
            ):
                return end
            size = struct.unpack("<I", head[4:8])[0]
            if is_tag(head) and (head[:4] not in _CHUNKS or place + 8 + size > end):
                return end
            if not all(32 <= byte < 127 for byte in head[:4]) or place + 8 + size > end:
                break
            place += 8 + size + size % 2
    return None


def _is_zeros(file: BinaryIO, begin: int, end: int) -> bool:
    return not any(any(read_at(file, place, _BLOCK_BYTES)) for place in range(begin, end, _BLOCK_BYTES))


def _header(data: _Data, held: int) -> bytes:
    """Return the header of a WAV with these samples."""
    rest = len(data.fmt) + 12
    if held + rest < 1 << 32:
        even = held + held % 2
        return struct.pack("<4sI4s", b"RIFF", even + rest, b"WAVE") + data.fmt + struct.pack("<4sI", b"data", even)
    long = struct.pack("<4sIQQQI", b"ds64", 28, held + rest + 36, held, held // data.block_bytes, 0)
    start = struct.pack("<4sI4s", b"RF64", 0xFFFFFFFF, b"WAVE")
    return start + long + data.fmt + struct.pack("<4sI", b"data", 0xFFFFFFFF)
