"""MP3 files by their bytes: whether the note of their encoder (Xing, Info) tells their length, and tells it truly."""

import functools
from typing import BinaryIO

from .streams import Stream, after_id3, excerpt, read_at, size_of

_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_LOW = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_NOTED_BYTES = (4, 4, 100, 4)  # of frames, bytes, places to go to, quality
_ENCODERS = (b"LAME", b"Lavf", b"Lavc")
_BLOCK_BYTES = 1 << 20
_PADDING_BYTES = 1 << 16  # zeros between a tag and the first frame


def mp3_stream(file: BinaryIO) -> Stream | None:
    """Return the stream of an MP3; None where a file is none.

    FFmpeg reads it, unless a note says how many frames and bytes there are and as many bytes are there: then libsndfile
    gives the same samples, can go to any place, and needs no further package.
    """
    begin = after_id3(file)
    head = read_at(file, begin, _PADDING_BYTES)
    padding = len(head) - len(stripped := head.lstrip(b"\0"))
    begin, head = begin + padding, stripped[:200]
    frame = _frame(head)
    if frame is None:
        return None
    rate, frame_bytes, samples, note_at = frame
    note = head[note_at : note_at + 16]
    if note[:4] not in (b"Xing", b"Info") or note[7] & 3 != 3:
        return Stream(file, "av")
    left_out = _left_out(head[note_at:]) / rate
    seconds = int.from_bytes(note[8:12], "big") * samples / rate - left_out
    end = _end(file)
    if abs(end - begin - int.from_bytes(note[12:16], "big")) > 1.5 * frame_bytes:
        return Stream(file, "av", seconds, "MP3s put end to end, or a note in its first frame that is not of this file")
    found = _count(file, begin + frame_bytes, end) * samples / rate - left_out
    if abs(found - seconds) > 1.5 * samples / rate:  # of more than there is, nothing is missing: all bytes are there
        return Stream(file, "av", min(seconds, found), "the note in its first frame has another number of frames")
    bare = excerpt(file, begin, size_of(file) - begin) if padding else file  # libsndfile knows no MP3 behind zeros
    return Stream(bare, "sound", seconds)


def _left_out(note: bytes) -> int:
    """Return how many samples of its frames decoders leave out, since they are an encoder's delay and padding."""
    place = 8 + sum(size for bit, size in enumerate(_NOTED_BYTES) if note[7] >> bit & 1)
    if note[place : place + 4] not in _ENCODERS:
        return 0
    noted = int.from_bytes(note[place + 21 : place + 24], "big")
    return (noted >> 12) + (noted & 0xFFF)


def _count(file: BinaryIO, begin: int, end: int) -> int:
    """Return how many frames lie one behind the other from a place on."""
    count, data, start = 0, b"", begin
    while begin + 4 <= end:
        if begin + 4 > start + len(data):
            data, start = read_at(file, begin, _BLOCK_BYTES), begin
        size = _frame_bytes(data[begin - start : begin - start + 4])
        if size is None:
            break
        count, begin = count + 1, begin + size
    return count


@functools.lru_cache(1 << 10)  # there are few headers in a file
def _frame_bytes(head: bytes) -> int | None:
    frame = _frame(head.ljust(200, b"\0"))
    return None if frame is None else frame[1]


def _frame(head: bytes) -> tuple[int, int, int, int] | None:
    """Return rate, bytes and samples of the frame of layer III that begins here, and where its note would stand."""
    if len(head) < 200 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0 or head[1] >> 1 & 3 != 1:
        return None
    version, kbits, rate, padding = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or kbits == 15 or rate == 3:
        return None
    first, mono = version == 3, head[3] >> 6 == 3
    samples, rate_hz = 1152 if first else 576, _RATES[version][rate]
    size = samples // 8 * (_KBITS if first else _KBITS_LOW)[kbits] * 1000 // rate_hz + padding
    return rate_hz, size or 1024, samples, 4 + ((17 if mono else 32) if first else (9 if mono else 17))


def _end(file: BinaryIO) -> int:
    """Return where the frames of a file end, before tags of ID3v1 and APE."""
    end = size_of(file)
    end -= 128 if read_at(file, max(0, end - 128), 3) == b"TAG" else 0
    foot = read_at(file, max(0, end - 32), 32)
    if foot[:8] == b"APETAGEX":
        end -= int.from_bytes(foot[12:16], "little") + (32 if foot[23] & 0x80 else 0)
    return end
