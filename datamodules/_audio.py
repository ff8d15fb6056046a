"""Encoded audio to int16 mono at 16 kHz, in blocks: a long file never exists in memory as floats."""

import io
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from fastslm.errors import DataError
from fastslm.mel import SAMPLE_RATE_HZ

from ._av import av_blocks, av_info, needs_av
from ._regions import Region, reading

_BLOCK_SECONDS = 30
_BUFFER_BYTES = 1 << 18
_CRC_BLOCK_BYTES = 1 << 20
MAX_RATE_HZ = 768_000
#: libsndfile's note on a WAV that is shorter than its header says; it reads what is there without a word.
_SHORT_WAV = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_BYTES = 0x7FFF0000  # from here on, what programs write that did not know the length (ffmpeg, sox to a pipe)
_OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # of the largest page


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


@dataclass(frozen=True)
class AudioInfo:
    """What a header says: frames per channel, samples per second, channels, and how they are encoded."""

    num_frames: int
    sample_rate_hz: int
    num_channels: int
    codec: str = ""

    @property
    def num_samples(self) -> int:
        """Samples after resampling to 16 kHz; the decoder may give one more or less."""
        return -(-self.num_frames * SAMPLE_RATE_HZ // self.sample_rate_hz)


def read_info(file: BinaryIO) -> AudioInfo:
    """Return what the header of an audio file says.

    Raises:
        DataError: it is no audio that can be read, or its header makes no sense.
        MissingExtraError: it needs the extra ``av``.
    """
    with reading(file):
        return AudioInfo(*av_info(file)) if needs_av(file) else _read_info(file)


def _read_info(file: BinaryIO) -> AudioInfo:
    _check_ogg(file)
    try:
        info = soundfile.info(file)
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        raise DataError(f"unreadable audio: {_short(error)}") from error
    _check_header(info)
    if info.frames <= 0 or info.channels <= 0:
        raise DataError("unreadable audio: it holds no samples")
    return AudioInfo(info.frames, info.samplerate, info.channels, f"{info.format}/{info.subtype}".lower())


def decode(file: BinaryIO, start_seconds: float = 0.0, stop_seconds: float | None = None) -> npt.NDArray[np.int16]:
    """Return int16 mono samples ``[N]`` at 16 kHz of a file, or of a part of it.

    Memory: the samples returned and one block.

    Raises:
        DataError: the audio cannot be decoded to its end, or holds no samples.
        MissingExtraError: it needs the extra ``av``.
    """
    with reading(file):
        if not needs_av(file):
            return _decode(file, start_seconds, stop_seconds)
        rate_hz, num_frames, blocks = av_blocks(file, start_seconds, stop_seconds)
        return _collected(_resampled(blocks, rate_hz), num_frames, rate_hz)


def _decode(file: BinaryIO, start_seconds: float, stop_seconds: float | None) -> npt.NDArray[np.int16]:
    _check_ogg(file)
    try:
        with soundfile.SoundFile(file) as sound:
            _check_header(sound)
            start = round(start_seconds * sound.samplerate)
            stop = sound.frames if stop_seconds is None else min(sound.frames, round(stop_seconds * sound.samplerate))
            if start:
                sound.seek(start)
            pieces: Iterator[npt.NDArray[np.int16]]
            if _is_ready(sound):
                pieces = (block[:, 0] for block in _read_blocks(sound, stop - start, "int16"))
            else:
                pieces = _resampled(_blocks(sound, stop - start), sound.samplerate)
            return _collected(pieces, stop - start, sound.samplerate)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(f"unreadable audio: {_short(error)}") from error


def _collected(pieces: Iterator[npt.NDArray[np.int16]], num_frames: int, rate_hz: int) -> npt.NDArray[np.int16]:
    """Return pieces end to end; they are laid into one array of the expected length, never held beside it."""
    # A header may promise anything: what it says is taken for no more than a day, and grown from there.
    expected = min(max(num_frames, 0), 86_400 * rate_hz) * SAMPLE_RATE_HZ // rate_hz + 2
    samples, length = np.empty(expected, np.int16), 0
    for piece in pieces:
        if length + len(piece) > len(samples):
            samples = np.concatenate([samples[:length], np.empty(max(length, len(piece)), np.int16)])
        samples[length : length + len(piece)] = piece
        length += len(piece)
    if not length:
        raise DataError("unreadable audio: it holds no samples")
    return samples[:length] if 8 * length > 7 * len(samples) else samples[:length].copy()


def _check_header(sound: Any) -> None:
    """Raise where a header cannot be true; for ``soundfile.SoundFile`` and what ``soundfile.info`` returns."""
    if not 0 < sound.samplerate <= MAX_RATE_HZ:
        raise DataError(f"unreadable audio: its header gives a sample rate of {sound.samplerate} Hz")
    note = _SHORT_WAV.search(sound.extra_info)
    if note and int(note[2]) < int(note[1]) < _UNKNOWN_BYTES:
        raise DataError(f"unreadable audio: it holds {note[2]} of the {note[1]} bytes that its header says")


def _check_ogg(file: BinaryIO) -> None:
    """Raise where the last page of an Ogg file is cut: its header gives no length, so that libsndfile just stops."""
    file.seek(0)
    if file.read(4) == b"OggS":
        file.seek(-min(file.seek(0, os.SEEK_END), _OGG_PAGE_BYTES), os.SEEK_END)
        tail = file.read()
        page = tail[tail.rfind(b"OggS\0") :]
        num_segments = page[26] if len(page) > 26 else 255
        if len(page) < 27 + num_segments + sum(page[27 : 27 + num_segments]):
            raise DataError("unreadable audio: it ends in the middle of an Ogg page")
    file.seek(0)


def _blocks(sound: soundfile.SoundFile, num_frames: int) -> Iterator[npt.NDArray[np.float32]]:
    """Return mono float32 blocks; a file that ends before its header says is an error."""
    for block in _read_blocks(sound, num_frames, "float32"):
        if not np.isfinite(block).all():
            raise DataError("unreadable audio: it holds values that are not numbers")
        yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)


def _read_blocks(sound: soundfile.SoundFile, num_frames: int, kind: str) -> Iterator[npt.NDArray[Any]]:
    left = num_frames
    while left > 0:
        block = sound.read(min(left, _BLOCK_SECONDS * sound.samplerate), dtype=kind, always_2d=True)
        if not len(block):
            raise DataError(f"unreadable audio: it ends {left / sound.samplerate:.2f} s before its header says")
        left -= len(block)
        yield block


def _is_ready(sound: soundfile.SoundFile) -> bool:
    """Say whether a file holds what is wanted: int16, mono, at 16 kHz."""
    return (sound.subtype, sound.channels, sound.samplerate) == ("PCM_16", 1, SAMPLE_RATE_HZ)


def _resampled(blocks: Iterator[npt.NDArray[np.float32]], rate_hz: int) -> Iterator[npt.NDArray[np.int16]]:
    if rate_hz == SAMPLE_RATE_HZ:
        yield from map(_to_int16, blocks)
        return
    stream = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
    for block in blocks:
        yield _to_int16(stream.resample_chunk(block))
    yield _to_int16(stream.resample_chunk(np.zeros(0, np.float32), last=True))


def _to_int16(block: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    scaled = np.clip(block, -1.0, 1.0)
    scaled *= 32768.0
    np.rint(scaled, out=scaled)
    np.minimum(scaled, 32767.0, out=scaled)
    return scaled.astype(np.int16)


def _short(error: Exception) -> str:
    return str(error).rpartition(": ")[2].strip() or type(error).__name__
