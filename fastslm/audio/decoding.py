"""Encoded audio of any format and rate to int16 mono at 16 kHz, in blocks: no long file is in memory as floats.

The one decoder of the package: for recordings inside shards, which are read whole or in part, and for files in use.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from fastslm.audio.ffmpeg import av_blocks, av_info, needs_av
from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import DataError
from fastslm.path.batch import Int16Array

Blocks: TypeAlias = Iterator[npt.NDArray[Any]]

BLOCK_SECONDS = 10
_DECODE_SECONDS = 30  # of a block where the whole is wanted anyway: most recordings of a corpus are then one
MAX_RATE_HZ = 768_000
#: libsndfile's note on a WAV that is shorter than its header says; it reads what is there without a word.
_SHORT_WAV = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_BYTES = 0x7FFF0000  # from here on, what programs write that did not know the length (ffmpeg, sox to a pipe)
_OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # of the largest page


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
    return AudioInfo(*av_info(file)) if needs_av(file) else sound_info(file)


def sound_info(file: BinaryIO) -> AudioInfo:
    """Return what the header of a file says that libsndfile reads; see ``read_info``."""
    _check_ogg(file)
    with _as_data_error():
        info = soundfile.info(file)
    _check_header(info)
    if info.frames <= 0 or info.channels <= 0:
        raise DataError("unreadable audio: it holds no samples")
    return AudioInfo(info.frames, info.samplerate, info.channels, f"{info.format}/{info.subtype}".lower())


def decode(file: BinaryIO, start_seconds: float = 0.0, stop_seconds: float | None = None) -> Int16Array:
    """Return int16 mono samples ``[N]`` at 16 kHz of a file, or of a part of it.

    Memory: the samples returned and one block.

    Raises:
        DataError: the audio cannot be decoded to its end, or holds no samples.
        MissingExtraError: it needs the extra ``av``.
    """
    if needs_av(file):
        rate_hz, num_frames, blocks = av_blocks(file, start_seconds, stop_seconds)
        return _collected(resampled(blocks, rate_hz), num_frames, rate_hz)
    with open_sound(file) as sound:
        start = round(start_seconds * sound.samplerate)
        stop = sound.frames if stop_seconds is None else min(sound.frames, round(stop_seconds * sound.samplerate))
        if start:
            sound.seek(start)
        blocks = sound_blocks(sound, stop - start, _DECODE_SECONDS)
        return _collected(resampled(blocks, sound.samplerate), stop - start, sound.samplerate)


def _collected(chunks: Iterator[Int16Array], num_frames: int, rate_hz: int) -> Int16Array:
    """Return chunks end to end; they are laid into one array of the expected length, never held beside it."""
    first = next(chunks, np.zeros(0, np.int16))
    second = next(chunks, None)
    if second is None and len(first):  # most recordings are one block, which need not be copied
        return first
    chunks = itertools.chain([first], [] if second is None else [second], chunks)
    # A header may promise anything: what it says is taken for no more than a day, and grown from there.
    expected = min(max(num_frames, 0), 86_400 * rate_hz) * SAMPLE_RATE_HZ // rate_hz + 2
    samples, length = np.empty(expected, np.int16), 0
    for chunk in chunks:
        if length + len(chunk) > len(samples):
            samples = np.concatenate([samples[:length], np.empty(max(length, len(chunk)), np.int16)])
        samples[length : length + len(chunk)] = chunk
        length += len(chunk)
    if not length:
        raise DataError("unreadable audio: it holds no samples")
    return samples[:length] if 8 * length > 7 * len(samples) else samples[:length].copy()


@contextlib.contextmanager
def open_sound(file: BinaryIO) -> Iterator[Any]:
    """Give a file as libsndfile opens it; refused are those that cannot be what their header says.

    Raises:
        DataError: it is no audio that libsndfile reads; also what goes wrong while it is read from.
    """
    _check_ogg(file)
    with _as_data_error(), soundfile.SoundFile(file) as sound:
        _check_header(sound)
        if sound.frames <= 0:
            raise DataError("unreadable audio: it holds no samples")
        yield sound


def sound_blocks(sound: Any, num_frames: int, block_seconds: int = BLOCK_SECONDS) -> Blocks:
    """Yield blocks ``[n, channels]`` of an open file, int16 where that is what it holds, ready for use.

    Raises:
        DataError: it ends before its header says.
    """
    ready = (sound.subtype, sound.channels, sound.samplerate) == ("PCM_16", 1, SAMPLE_RATE_HZ)
    left = num_frames
    while left > 0:
        size = min(left, block_seconds * sound.samplerate)
        block = sound.read(size, dtype="int16" if ready else "float32", always_2d=True)
        if not len(block):
            at, missing = (num_frames - left) / sound.samplerate, left / sound.samplerate
            raise DataError(f"unreadable audio: it breaks off at {at:.2f} s, {missing:.2f} s before its header says")
        left -= len(block)
        yield block


def resampled(blocks: Blocks, rate_hz: int) -> Iterator[Int16Array]:
    """Yield blocks ``[n]`` or ``[n, channels]`` at any rate as int16 mono at 16 kHz."""
    resampler = Resampler(rate_hz)
    for block in blocks:
        yield resampler.push(block)
    if len(rest := resampler.finish()):
        yield rest


class Resampler:
    """Blocks at any rate to int16 mono at 16 kHz; blocks may have any length.

    Args:
        rate_hz: samples per second of what comes in.
    """

    def __init__(self, rate_hz: int) -> None:
        check_rate(rate_hz)
        self._stream = None if rate_hz == SAMPLE_RATE_HZ else soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, "float32")

    def push(self, block: npt.NDArray[Any]) -> Int16Array:
        """Return what ``block`` (``[N]`` or ``[N, channels]``, floats or int16) makes; the resampler lags behind.

        Raises:
            DataError: it holds values that are not numbers.
        """
        block = block[:, 0] if block.ndim == 2 and block.shape[1] == 1 else block
        if self._stream is None and block.dtype == np.int16 and block.ndim == 1:
            return block
        block = block.astype(np.float32) / 32768.0 if block.dtype == np.int16 else block.astype(np.float32, copy=False)
        if not np.isfinite(block).all():
            raise DataError("unreadable audio: it holds values that are not numbers")
        mono = block.mean(axis=1, dtype=np.float32) if block.ndim == 2 else block
        return _to_int16(mono if self._stream is None else self._stream.resample_chunk(mono))

    def finish(self) -> Int16Array:
        """Return what was held back."""
        rest = np.zeros(0, np.float32)
        return _to_int16(rest if self._stream is None else self._stream.resample_chunk(rest, last=True))


def _to_int16(block: npt.NDArray[np.float32]) -> Int16Array:
    scaled = np.clip(block, -1.0, 1.0)
    scaled *= 32768.0
    np.rint(scaled, out=scaled)
    np.minimum(scaled, 32767.0, out=scaled)
    return scaled.astype(np.int16)


def check_rate(rate_hz: int) -> None:
    """Raise DataError where a number cannot be a sample rate."""
    if not 0 < rate_hz <= MAX_RATE_HZ:
        raise DataError(f"unreadable audio: a sample rate of {rate_hz} Hz")


def _check_header(sound: Any) -> None:
    """Raise where a header cannot be true; for ``soundfile.SoundFile`` and what ``soundfile.info`` returns."""
    check_rate(sound.samplerate)
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


@contextlib.contextmanager
def _as_data_error() -> Iterator[None]:
    try:
        yield
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        what = str(error).rpartition(": ")[2].strip() or type(error).__name__
        raise DataError(f"unreadable audio: {what}") from error
