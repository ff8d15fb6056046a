"""Ogg files by their pages: streams one after another, as radio recorders and browsers leave them."""

import re
from collections.abc import Iterator
from typing import BinaryIO

from fastslm.errors import DataError

from .streams import Stream, excerpt, find_all, read_at, size_of

_FIRST_PAGE = re.compile(rb"OggS\x00[\x02\x06]")
_SOUND_CODECS = (b"\x01vorbis", b"OpusHead")  # that libsndfile decodes
_LARGEST_PAGE_BYTES = 27 + 255 + 255 * 255


def ogg_streams(file: BinaryIO, thorough: bool) -> Iterator[Stream]:
    """Yield the streams that lie end to end in an Ogg file.

    Args:
        file: it.
        thorough: read all of it; otherwise it is taken for one stream where its first and last page have one number.

    Raises:
        DataError: it ends in the middle of a page: no header gives a length, so that libsndfile would just stop.
    """
    end = size_of(file)
    tail = read_at(file, max(0, end - _LARGEST_PAGE_BYTES), _LARGEST_PAGE_BYTES)
    if _page_bytes(page := tail[tail.rfind(b"OggS\0") :]) > len(page):
        raise DataError("unreadable audio: it ends in the middle of an Ogg page")
    first = read_at(file, 0, 27 + 255 + 8)
    begins, side_by_side, page_end = [0], False, _page_bytes(first)
    same_stream = first[14:18] == page[14:18]
    for place in find_all(file, _FIRST_PAGE, 6) if thorough or not same_stream else ():
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
        yield Stream(one, "sound" if head[27 + head[26] :].startswith(_SOUND_CODECS) else "av")


def _page_bytes(head: bytes) -> int:
    """Return the length of the page that begins with these bytes."""
    num_segments = head[26] if len(head) > 26 else 255
    segments = head[27 : 27 + num_segments]
    return 27 + num_segments + (sum(segments) if len(segments) == num_segments else 1)
