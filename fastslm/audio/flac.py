"""FLAC files by their bytes: how long they are says their last frame, and files may lie end to end."""

import functools
import re
from collections.abc import Iterator
from typing import BinaryIO

from .ffmpeg import has_av
from .streams import LONGEST_SECONDS, Stream, after_id3, excerpt, find_all, read_at, size_of

_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # with the length of STREAMINFO, which always comes first
_FRAME = re.compile(rb"\xff[\xf8\xf9]")
_LARGEST_FRAME_BYTES = 1 << 21  # that is looked for
_HEADER_BYTES = 42
_MOST_BITS = 24  # of a sample, that libsndfile reads
_MOST_BLOCKS = 1000  # of metadata
_BEHIND_BYTES = 4096  # of tags at the end; where there are more bytes that are no frame, more is read


def is_flac(file: BinaryIO) -> bool:
    """Say whether a file begins as a FLAC, behind ID3 tags or not."""
    return _START.match(read_at(file, after_id3(file), 8)) is not None


def flac_streams(file: BinaryIO, thorough: bool) -> Iterator[Stream]:
    """Yield the FLACs that lie end to end in a file.

    Args:
        file: it.
        thorough: read all of it; otherwise it is taken for one FLAC where its end bears that out.
    """
    end = size_of(file)
    begins = [after_id3(file)]
    if thorough or not _is_borne_out(file, begins[0], end):
        begins = [*find_all(file, _START, 8)]
    for begin, following in zip(begins, [*begins[1:], end], strict=True):
        yield _stream(file, begin, following, alone=len(begins) == 1)


def _total(info: bytes) -> int:
    return int.from_bytes(info[21:26], "big") & ((1 << 36) - 1)


def _is_borne_out(file: BinaryIO, begin: int, end: int) -> bool:
    info = read_at(file, begin, _HEADER_BYTES)
    return _total(info) in _last_samples(file, begin, end, info)


def _stream(file: BinaryIO, begin: int, end: int, alone: bool) -> Stream:
    info = read_at(file, begin, _HEADER_BYTES)
    rate = int.from_bytes(info[18:21], "big") >> 4
    total = _total(info)
    own = file if alone else excerpt(file, begin, end - begin)
    if not rate:
        return Stream(own)
    if (info[20] & 1) << 4 | info[21] >> 4 >= _MOST_BITS and has_av():  # less one
        return Stream(own, "av", total / rate or None)
    if first := _first_sample(file, begin, info):  # libsndfile goes by its number, and reads the end twice
        why = f"its frames begin at {first / rate:.2f} s: it was cut out of a longer one"
        return Stream(own, "av", total / rate or None, why, first / rate)
    found = _last_samples(file, begin, end, info)
    if not found or total in found:
        return Stream(own, claimed_seconds=total / rate)
    length = _held(file, end, found, _largest(info))
    nonsense = total == 0 or total > LONGEST_SECONDS * rate or total > 4096 * (end - begin)
    if length is None or (total > length and not nonsense):  # libsndfile breaks off in it, and says where
        return Stream(own, claimed_seconds=total / rate)
    head = info[:21] + ((info[21] >> 4 << 36) | length).to_bytes(5, "big") + info[26:]
    mended = excerpt(file, begin + _HEADER_BYTES, end - begin - _HEADER_BYTES, head)
    why = "" if total == 0 else "its FLAC header has another number of samples than its frames"
    return Stream(mended, claimed_seconds=None if total == 0 else total / rate, why=why)


def _first_sample(file: BinaryIO, begin: int, info: bytes) -> int:
    """Return the number of the first sample; not 0 where frames were copied out of a longer recording."""
    position = begin + 4
    for _ in range(_MOST_BLOCKS):
        head = read_at(file, position, 4)
        position += 4 + int.from_bytes(head[1:], "big")
        if len(head) < 4 or head[0] & 0x80:
            break
    first, _ = _frame(read_at(file, position, 16), int.from_bytes(info[10:12], "big")) or (0, 0)
    return first


def _last_samples(file: BinaryIO, begin: int, end: int, info: bytes) -> dict[int, tuple[int, int]]:
    """Return for each frame that begins near the end after how many samples it ends, with its place and first sample.

    By chance other bytes may look like the begin of a frame; the true last frame is among those returned.
    """
    size = 2 * _largest(info) + _BEHIND_BYTES
    while True:
        start = max(begin + _HEADER_BYTES, end - size)
        found = _frames(read_at(file, start, end - start), start, info)
        if start == begin + _HEADER_BYTES or _following(found):
            return found
        size *= 4


def _largest(info: bytes) -> int:
    """Return the bytes of the largest frame, as far as the header tells."""
    return min(int.from_bytes(info[15:18], "big") or _LARGEST_FRAME_BYTES // 8, _LARGEST_FRAME_BYTES)


def _frames(data: bytes, start: int, info: bytes) -> dict[int, tuple[int, int]]:
    fixed = int.from_bytes(info[10:12], "big")
    found = {}
    for match in _FRAME.finditer(data):
        frame = _frame(data[match.start() : match.start() + 16], fixed)
        if frame is not None:
            first, samples = frame
            found[first + samples] = (start + match.start(), first)
    return found


def _following(found: dict[int, tuple[int, int]]) -> list[int]:
    """Return the ends of frames that follow another one, or begin the recording."""
    return [samples for samples, (_, first) in found.items() if first in found or first == 0]


def _held(file: BinaryIO, end: int, found: dict[int, tuple[int, int]], largest: int) -> int | None:
    """Return after how many samples the last whole frame ends; None where no frame follows another."""
    following = _following(found)
    if not following:
        return None
    last = max(following, key=lambda samples: found[samples][0])
    place, first = found[last]
    if end - place > largest + _BEHIND_BYTES:  # what is no frame lies behind it
        return last
    data = read_at(file, place, end - place)
    data = data[:-128] if data[-128:-125] == b"TAG" else data  # ID3v1
    return last if _crc(data[:-2], 16, 0x8005) == int.from_bytes(data[-2:], "big") else first


def _frame(head: bytes, fixed: int) -> tuple[int, int] | None:
    """Return the first sample and the number of samples of the frame that begins here, None if none does."""
    if len(head) < 8 or head[3] & 1 or head[3] >> 4 > 10 or head[3] >> 1 & 7 == 3 or head[2] & 15 == 15:
        return None
    length = max(1, 8 - (head[4] ^ 0xFF).bit_length())  # bytes of the number, coded as in UTF-8
    if head[4] == 0xFF or (head[4] & 0xC0) == 0x80 or any(b & 0xC0 != 0x80 for b in head[5 : 4 + length]):
        return None
    number = head[4] & (0x7F if length == 1 else 0x7F >> length)
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    place, code = 4 + length, head[2] >> 4
    extra = {6: 1, 7: 2}.get(code, 0)
    if code == 0:
        return None
    if extra:
        samples = int.from_bytes(head[place : place + extra], "big") + 1
    else:
        samples = 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8
    place += extra + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if place >= len(head) or _crc(head[:place], 8, 0x07) != head[place]:
        return None
    return number if head[1] & 1 else number * fixed, samples


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    crc, mask, table = 0, (1 << bits) - 1, _crc_table(bits, polynomial)
    for byte in data:
        crc = (crc << 8 & mask) ^ table[crc >> bits - 8 ^ byte]
    return crc


@functools.cache
def _crc_table(bits: int, polynomial: int) -> list[int]:
    top, mask, table = 1 << bits - 1, (1 << bits) - 1, []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = (value << 1 ^ polynomial) & mask if value & top else value << 1
        table.append(value)
    return table
