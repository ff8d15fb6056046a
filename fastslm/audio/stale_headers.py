"""AIFF, AU, CAF, RIFX, Wave64 and NIST files by their bytes: sizes that were never updated, and files cut off.

libsndfile is given the true sizes; it takes what is there for all, without a word.
"""

import math
import re
import struct
from typing import BinaryIO

from fastslm.errors import DataError

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

_MOST_CHUNKS = 1000
_AU_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8}  # of a sample, by its encoding
_MOST_NIST_BYTES = 1 << 14  # of a header
_NIST_CODING = re.compile(rb"^sample_coding -s\d+ (\S+)", re.MULTILINE)
_WHY = "its header was not updated"


def stale_stream(file: BinaryIO) -> Stream | None:
    """Return the stream of a file whose header says less than there is; None where it says the truth, or is no such.

    Raises:
        DataError: it says more.
    """
    head, end = read_at(file, 0, 24), size_of(file)
    if head[:4] in (b".snd", b"dns.") and len(head) == 24:
        order = ">" if head[:1] == b"." else "<"
        begin, claimed, code, rate, channels = struct.unpack(f"{order}5I", head[4:])
        return _mended(file, {8: b"\xff" * 4}, claimed, end - begin, rate * channels * _AU_BYTES.get(code, 1), end)
    if head[:4] == b"caff":
        described, begin = (_chunk(file, end, 8, name, ">4sq", 12) for name in (b"desc", b"data"))
        if described is not None and begin is not None:
            rate_hz, _, _, packet = struct.unpack(">d4sII", read_at(file, described, 20))
            claimed = struct.unpack(">q", read_at(file, begin - 8, 8))[0]
            left = end - begin
            if 0 <= claimed < UNKNOWN_LONG_BYTES:
                check_held(left, claimed)
            if claimed >= 0 and _follows(file, begin + claimed, end, ">4sq"):
                return None
            return _mended(file, {begin - 8: struct.pack(">q", left)}, claimed, left, rate_hz * packet, end)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        common, begin = (_chunk(file, end, 12, name, ">4sI", 8) for name in (b"COMM", b"SSND"))
        if common is not None and begin is not None:
            claimed = struct.unpack(">I", read_at(file, begin - 4, 4))[0]
            if not _follows(file, begin + claimed + claimed % 2, end, ">4sI"):
                channels, _, bits, exponent, mantissa = struct.unpack(">HIHHQ", read_at(file, common, 18))
                rate_hz = math.ldexp(mantissa, (exponent & 0x7FFF) - 16383 - 63)  # a float of 80 bits
                changes = {common + 2: bytes(4), begin - 4: bytes(4)}
                return _mended(file, changes, claimed, end - begin, channels * bits / 8 * rate_hz, end)
    if head[:4] == b"RIFX":
        described, begin = (_chunk(file, end, 12, name, ">4sI", 8) for name in (b"fmt ", b"data"))
        if described is not None and begin is not None:
            claimed, byte_rate = (struct.unpack(">I", read_at(file, at, 4))[0] for at in (begin - 4, described + 8))
            if not _follows(file, begin + claimed + claimed % 2, end, ">4sI"):
                changes = {begin - 4: struct.pack(">I", min(end - begin, 0xFFFFFFFF))}
                return _mended(file, changes, claimed, end - begin, byte_rate, end)
    if head[:8] == b"riff\x2e\x91\xcf\x11":
        return _wave64(file, end)
    if head.startswith(b"NIST_1A\n"):
        return _nist(file, end)
    return None


def _wave64(file: BinaryIO, end: int) -> Stream | None:
    position, byte_rate = 40, 0  # chunks have names of 16 bytes and sizes of 8, which count both, and begin at eights
    for _ in range(_MOST_CHUNKS):
        head = read_at(file, position, 36)
        if len(head) < 36:
            break
        size, byte_rate = struct.unpack("<16xQ", head[:24])[0], byte_rate or struct.unpack("<32xI", head)[0]
        begin, following = position + 24, position + size + -size % 8
        if head[:4] == b"data":
            claimed, left = size - 24, end - begin
            if claimed <= 0 or claimed >= UNKNOWN_LONG_BYTES:  # libsndfile takes all there is
                return None
            check_held(left, claimed)
            if _follows(file, following, end, "<4s20x"):
                return None
            return _mended(file, {position + 16: struct.pack("<Q", left + 24)}, claimed, left, byte_rate, end)
        if size < 24:
            break
        byte_rate = byte_rate if head[:4] == b"fmt " else 0
        position = following
    return None


def _nist(file: BinaryIO, end: int) -> Stream | None:
    head = read_at(file, 0, _MOST_NIST_BYTES).partition(b"end_head")[0]
    size_at, coding = re.match(rb"NIST_1A\n *(\d{1,9})\n", head), _NIST_CODING.search(head)
    if coding and b"embedded-" in coding[1]:
        what = coding[1].decode("ascii", "replace")
        raise DataError(f"unreadable audio: it is compressed ({what}): sph2pipe -f wav IN OUT.wav unpacks it")
    found = {name: int(number) for name, number in re.findall(rb"^(\w+) -i (\d{1,12})", head, re.MULTILINE)}
    if size_at is None or b"sample_count" not in found:
        return None
    begin, rate_hz = int(size_at[1]), found.get(b"sample_rate", 0)
    frame = found.get(b"sample_n_bytes", 1) * found.get(b"channel_count", 1)
    return _mended(file, {}, found[b"sample_count"] * frame, end - begin, rate_hz * frame, end)


def _chunk(file: BinaryIO, end: int, position: int, name: bytes, form: str, head_bytes: int) -> int | None:
    """Return where the contents of a chunk begin, None where it is not there."""
    for _ in range(_MOST_CHUNKS):
        head = read_at(file, position, head_bytes)
        if len(head) < head_bytes or position + head_bytes > end:
            return None
        found, size = struct.unpack(form, head)
        if found == name:
            return position + head_bytes
        position += head_bytes + max(0, size) + (size % 2 if head_bytes == 8 else 0)
    return None


def _follows(file: BinaryIO, position: int, end: int, form: str) -> bool:
    """Say whether the file ends at a place, or a chunk begins there."""
    size = struct.calcsize(form)
    if abs(end - position) < size:
        return True
    head = read_at(file, position, size)
    return position < end and all(32 <= byte < 127 for byte in head[:4])


def _mended(
    file: BinaryIO, changes: dict[int, bytes], claimed: int, left: int, byte_rate: float, end: int
) -> Stream | None:
    """Return a stream with some bytes of its header changed, None where there is no more than it says.

    None are changed where libsndfile reads all there is, whatever the header says, and where tags follow.

    Raises:
        DataError: there is less.
    """
    if 0 <= claimed < UNKNOWN_BYTES:
        check_held(left, claimed)
    if not 0 < byte_rate < math.inf or (claimed >= 0 and left - claimed <= SLACK_SECONDS * byte_rate):
        return None
    if claimed >= 0 and is_tag(read_at(file, end - left + claimed + claimed % 2, 9)):
        return None
    last = max((place + len(data) for place, data in changes.items()), default=0)
    head = bytearray(read_at(file, 0, last))
    for place, data in changes.items():
        head[place : place + len(data)] = data
    return Stream(
        excerpt(file, last, end - last, bytes(head)),
        claimed_seconds=None if claimed < 0 else claimed / byte_rate,
        why=_WHY,
    )
