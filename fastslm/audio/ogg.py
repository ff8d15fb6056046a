"""Ogg files by their pages: streams one after another, as radio recorders and browsers leave them."""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from fastslm.errors import DataError

from .streams import Stream, excerpt, find_all, read_at, size_of
from .vorbis import num_samples

_PAGE = re.compile(rb"OggS\x00")
_HEADER = struct.Struct("<4sBBqIII")  # mark, version, kind, granule position, stream, number, checksum
_REST = "ffmpeg -i IN OUT.flac makes a file of what is whole"
_BEGINS, _ENDS = 2, 4  # of the kind: first and last page of a stream
_NUM_HEADERS = 3  # packets of Vorbis before those of sound
_MOST_HEADER_PAGES = 256  # pictures may be in them
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_VORBIS = b"\x01vorbis"
_SOUND_CODECS = (_VORBIS, b"OpusHead")  # that libsndfile decodes
_LARGEST_PAGE_BYTES = 27 + 255 + 255 * 255


def ogg_streams(file: BinaryIO, thorough: bool) -> Iterator[Stream]:
    """Yield the streams that lie end to end in an Ogg file.

    Args:
        file: it.
        thorough: read all of it; otherwise it is taken for one stream where its first and last page have one number.

    Raises:
        DataError: it ends in the middle of a page: no header gives a length, so that libsndfile would just stop; or,
            where all of it is read, a page is damaged or missing, which decoders leave out without a word.
    """
    end = size_of(file)
    if _page_bytes(page := _last_page(file)) > len(page):
        raise DataError("unreadable audio: it ends in the middle of an Ogg page")
    first = read_at(file, 0, 27 + 255 + 8)
    begins, side_by_side, page_end = [0], False, _page_bytes(first)
    same_stream = first[14:18] == page[14:18]
    for place in (page.begin for page in _whole_pages(file) if page.first) if thorough or not same_stream else ():
        if place == 0:
            continue
        if place == page_end:  # a second stream beside the first: a video, or a skeleton
            side_by_side = True
        else:
            begins.append(place)
        page_end = place + _page_bytes(read_at(file, place, 27 + 255))
    if side_by_side:
        yield Stream(file, "av")
        return
    for begin, following in zip(begins, [*begins[1:], end], strict=True):
        head = read_at(file, begin, 27 + 255 + 8)
        one = file if len(begins) == 1 else excerpt(file, begin, following - begin)
        if head[27 + head[26] :].startswith(_VORBIS) and _holds_more(one):
            yield Stream(one, "av", _told_seconds(one), "it was cut out of a longer one")
        else:
            yield Stream(one, "sound" if head[27 + head[26] :].startswith(_SOUND_CODECS) else "av")


def _last_page(file: BinaryIO) -> bytes:
    tail = read_at(file, size_of(file) - _LARGEST_PAGE_BYTES, _LARGEST_PAGE_BYTES)
    return tail[tail.rfind(b"OggS\0") :]


def _told_seconds(file: BinaryIO) -> float | None:
    """Return the time of the last page of a Vorbis stream, None where it has none."""
    rate_hz = int.from_bytes(read_at(file, 28 + 12, 4), "little")
    granule = int.from_bytes(_last_page(file)[6:14], "little", signed=True)
    return granule / rate_hz if rate_hz and granule > 0 else None


def _holds_more(file: BinaryIO) -> bool:
    """Say whether the first page with sound of a Vorbis stream holds more samples than its time says.

    So ``ffmpeg -ss 3 -i a.ogg -c copy b.ogg`` leaves it. libsndfile counts from the first sample up to the last time.
    """
    position, packets, rest = 0, [], bytearray()
    for _ in range(_MOST_HEADER_PAGES):
        head = read_at(file, position, 27 + 255)
        if not _PAGE.match(head) or len(head) < 27:
            break
        page = read_at(file, position, _page_bytes(head))
        _, _, kind, granule, *_ = _HEADER.unpack(page[: _HEADER.size])
        place = 27 + page[26]
        for size in page[27:place]:
            rest += page[place : place + size]
            place += size
            if size < 255:
                packets.append(bytes(rest))
                rest.clear()
        if len(packets) > _NUM_HEADERS:
            first, _, setup, *sound = packets
            return not kind & _ENDS and num_samples(first, setup, sound) > granule
        position += len(page)
    return False


class _Page(NamedTuple):
    begin: int
    first: bool  # of its stream


def _whole_pages(file: BinaryIO) -> Iterator[_Page]:
    """Yield all pages, each as its encoder wrote it; between two streams may lie what is no page.

    Raises:
        DataError: the bytes of one are not those of its checksum, or the next one of its stream is missing.
    """
    last: dict[int, tuple[int, int]] = {}  # number and granule position of the last page of each stream
    position, end, rubbish = 0, size_of(file), False
    while position < end:
        head = read_at(file, position, 27 + 255)
        if not _PAGE.match(head):
            rest = excerpt(file, position, end - position)
            found = next(find_all(rest, _PAGE, 5), None)
            if found is None:
                return
            position, rubbish = position + found, True
            continue
        size = _page_bytes(head)
        if position + size > end:  # what is cut at the end is told elsewhere; here a mark within rubbish
            return
        page = head[:size] if size <= len(head) else read_at(file, position, size)
        _, _, kind, granule, stream, number, checksum = _HEADER.unpack(page[: _HEADER.size])
        if checksum != _checksum(page[:22] + bytes(4) + page[26:]):
            raise DataError(
                f"unreadable audio: the Ogg page at byte {position} is damaged (its checksum differs). {_REST}"
            )
        before, at = last.get(stream, (number - 1, 0))
        # a recorder that joins a broadcast has its headers, which stand at 0, and then a page of a higher number
        if not kind & _BEGINS and (rubbish or (number != (before + 1) & 0xFFFFFFFF and at != 0)):
            raise DataError(f"unreadable audio: Ogg pages are missing before byte {position}. {_REST}")
        last[stream], rubbish = (number, granule), False
        yield _Page(position, bool(kind & _BEGINS))
        position += size


def _checksum(page: bytes) -> int:
    """Return the checksum of a page whose own is zeros: CRC-32, most significant bit first (RFC 3533, section 6)."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)


def _page_bytes(head: bytes) -> int:
    """Return the length of the page that begins with these bytes."""
    num_segments = head[26] if len(head) > 26 else 255
    segments = head[27 : 27 + num_segments]
    return 27 + num_segments + (sum(segments) if len(segments) == num_segments else 1)
