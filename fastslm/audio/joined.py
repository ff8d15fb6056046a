"""Where one audio file ends and the next begins: people put files end to end, and decoders read the first and stop."""

import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from .streams import find_all, read_at, size_of

_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_MATROSKA = re.compile(rb"\x1aE\xdf\xa3.{1,64}?\x42\x82.{1,8}?(?:webm|matroska)", re.DOTALL)
_LONGEST_MATROSKA_BYTES = 4 + 64 + 2 + 8 + 8
#: Of formats that are rare: what their files begin with, which audio does not hold by chance.
_BEGINS = {
    b"FORM": re.compile(rb"FORM.{4}AIF[FC]", re.DOTALL),
    b"caff": re.compile(rb"caff\x00\x01\x00\x00desc"),
    b"FLV\x01": re.compile(rb"FLV\x01[\x01\x04\x05]\x00\x00\x00\x09"),
    b"TTA1": re.compile(rb"TTA1[\x01\x02]\x00"),
}
_LONGEST_BEGIN_BYTES = 12


def begins_of(file: BinaryIO) -> list[int]:
    """Return where the files lie that were put end to end in one; 0 alone for most.

    For MP4, Matroska and WebM, AIFF, CAF, FLV and TTA; formats that are read by their streams are not asked here.
    """
    head = read_at(file, 0, 12)
    if head[4:8] == b"ftyp":
        found = _mp4_begins(file)
    elif head.startswith(_EBML):
        found = _matroska_begins(file)
    elif pattern := _BEGINS.get(head[:4]):
        found = find_all(file, pattern, _LONGEST_BEGIN_BYTES)
    else:
        return [0]
    return [0, *(begin for begin in found if begin)]


def mp4_boxes(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield place and name of the boxes of an MP4 (ISO/IEC 14496-12, 4.2), those inside of others left out."""
    position, end = 0, size_of(file)
    while len(head := read_at(file, position, 16)) >= 8:
        size, name = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:
            size = struct.unpack(">Q", head[8:])[0]
        yield position, name
        if size < 8:  # 0: it goes on to the end
            return
        position = min(position + size, end)


def _mp4_begins(file: BinaryIO) -> Iterator[int]:
    has_samples = False
    for position, name in mp4_boxes(file):
        if name == b"ftyp" and has_samples:  # without samples between them it is the same header once more
            yield position
            has_samples = False
        has_samples |= name == b"mdat"


def _matroska_begins(file: BinaryIO) -> Iterator[int]:
    position = 0
    while read_at(file, position, 4) == _EBML:
        yield position
        following = matroska_end(file, position)
        if following is None:  # a live recording does not know its length
            yield from (place for place in find_all(file, _MATROSKA, _LONGEST_MATROSKA_BYTES) if place > position)
            return
        position = following


def matroska_end(file: BinaryIO, position: int = 0) -> int | None:
    """Return where the Matroska file that begins at a place ends, None if it does not tell."""
    end = _element_end(file, position)
    return _element_end(file, end) if end is not None and read_at(file, end, 4) == _SEGMENT else None


def _element_end(file: BinaryIO, position: int) -> int | None:
    """Return where an element with an ID of 4 bytes ends (RFC 8794, section 6), None if it does not tell."""
    head = read_at(file, position + 4, 8)
    length = 9 - head[0].bit_length() if head else 9
    if length > len(head):
        return None
    size = int.from_bytes(head[:length], "big") & ((1 << 7 * length) - 1)
    return None if size == (1 << 7 * length) - 1 else position + 4 + length + size
