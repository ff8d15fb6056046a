"""Audio that libsndfile cannot read (m4a, aac, webm, the sound of videos) through FFmpeg, by the package PyAV."""

import importlib.util
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fastslm.errors import DataError, MissingExtraError

_MAX_RATE_HZ = 768_000
_PREROLL_SECONDS = 0.2  # what a decoder needs before its output can be trusted
#: By which a length is misstated, by packets and by a container: an encoder's delay and its last packet.
_TOLERANCE_SECONDS, _HEADER_TOLERANCE_SECONDS = 0.25, 0.5
_BLOCK_SECONDS = 10
_CONTAINERS = (b"\x1aE\xdf\xa3", b"\x30\x26\xb2\x75", b"#!AMR", b"FLV\x01")  # Matroska and WebM, ASF, AMR, Flash


def needs_av(file: BinaryIO) -> bool:
    """Say whether the first bytes of a file are those of a container or codec that libsndfile lacks."""
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    adts = len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0  # an MP3 has its layer where this has zeros
    avi = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    return adts or avi or head[4:8] == b"ftyp" or head.startswith(_CONTAINERS)


def has_av() -> bool:
    """Say whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def _open(file: BinaryIO) -> tuple[Any, Any]:
    try:
        import av
        import av.logging
    except ImportError:
        raise MissingExtraError("av", extra="av", purpose="audio in m4a, aac, webm or a video") from None
    av.logging.set_level(None)
    file.seek(0, os.SEEK_SET)
    try:
        container = av.open(file, "r", metadata_errors="replace")
    except (av.FFmpegError, ValueError, OSError) as error:
        raise DataError(f"unreadable audio: {_short(error)}") from error
    if not container.streams.audio:
        container.close()
        raise DataError("unreadable audio: it holds no audio stream")
    stream = container.streams.audio[0]
    if not 0 < (stream.sample_rate or 0) <= _MAX_RATE_HZ or not stream.channels:
        container.close()
        raise DataError(f"unreadable audio: its header gives a sample rate of {stream.sample_rate} Hz")
    return container, stream


def av_info(file: BinaryIO) -> tuple[int, int, int, str]:
    """Return frames per channel, samples per second, channels and codec; the packets are counted, not decoded.

    Raises:
        DataError: it cannot be read, or holds no audio.
        MissingExtraError: PyAV is not installed.
    """
    container, stream = _open(file)
    import av

    with container:
        try:
            seconds = _seconds(container, stream)
        except (av.FFmpegError, ValueError, OSError) as error:
            raise DataError(f"unreadable audio: {_short(error)}") from error
        num_frames = round(seconds * stream.sample_rate)
        if num_frames <= 0:
            raise DataError("unreadable audio: it holds no samples")
        return num_frames, int(stream.sample_rate), int(stream.channels), str(stream.codec_context.name)


def av_seconds(file: BinaryIO) -> float | None:
    """Return the seconds that the container gives for its sound, read from its header alone; None where it has none.

    Raises:
        DataError: it cannot be read, or holds no audio.
        MissingExtraError: PyAV is not installed.
    """
    container, stream = _open(file)
    with container:
        return _header_seconds(container, stream)


def _header_seconds(container: Any, stream: Any) -> float | None:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else float(container.duration / 1_000_000)


def _seconds(container: Any, stream: Any) -> float:
    """Return the duration by the packets: a raw AAC stream has no header that tells it, and others may be wrong."""
    end = 0
    for packet in container.demux(stream):
        if packet.pts is not None:
            end = max(end, packet.pts + (packet.duration or 0))
    start = max(stream.start_time or 0, 0)
    return float((end - start) * stream.time_base)


def av_blocks(
    file: BinaryIO, start_seconds: float = 0.0, stop_seconds: float | None = None
) -> tuple[int, int, Iterator[npt.NDArray[np.float32]]]:
    """Return samples per second, frames to expect, and mono float32 blocks of a file or a part of it.

    Raises:
        DataError: it cannot be read to its end.
        MissingExtraError: PyAV is not installed.
    """
    num_frames, rate_hz, *_ = av_info(file)
    stop = num_frames if stop_seconds is None else min(num_frames, round(stop_seconds * rate_hz))
    start = round(start_seconds * rate_hz)
    if stop <= start:
        raise DataError("unreadable audio: it holds no samples")
    end = None if stop_seconds is None or stop == num_frames else stop
    least = (num_frames if end is None else end) - round(_TOLERANCE_SECONDS * rate_hz)
    return rate_hz, stop - start, _joined(_cut(file, rate_hz, start, end, least), rate_hz)


def av_stream(file: BinaryIO) -> tuple[int, Iterator[npt.NDArray[np.float32]]]:
    """Return samples per second and mono float32 blocks of a whole file, which is gone through once.

    Raises:
        DataError: it cannot be read to its end, by what its header says.
        MissingExtraError: PyAV is not installed.
    """
    container, stream = _open(file)
    with container:
        rate_hz = int(stream.sample_rate)
        seconds = 0.0 if stream.duration is None else float(stream.duration * stream.time_base)
    least = round((seconds - _HEADER_TOLERANCE_SECONDS) * rate_hz)
    return rate_hz, _joined(_cut(file, rate_hz, 0, None, least), rate_hz)


def _cut(file: BinaryIO, rate_hz: int, start: int, stop: int | None, least: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the mono frames from ``start`` on, up to ``stop`` or the end, which must not come before ``least``."""
    container, stream = _open(file)
    import av

    with container:
        try:
            origin = max(stream.start_time or 0, 0)
            if start:
                place = max(0.0, start / rate_hz - _PREROLL_SECONDS)
                container.seek(origin + int(place / stream.time_base), stream=stream)
            converter = av.AudioResampler(format="fltp")
            position = None
            for frame in container.decode(stream):
                if frame.sample_rate != rate_hz:
                    raise DataError(f"unreadable audio: its sample rate changes to {frame.sample_rate} Hz")
                if position is None:
                    seconds = 0.0 if frame.pts is None else float((frame.pts - origin) * frame.time_base)
                    position = round(seconds * rate_hz)  # below 0 where an encoder's delay is to be cut off
                for part in converter.resample(frame):
                    mono = part.to_ndarray().mean(axis=0, dtype=np.float32)
                    begin, end = position, position + len(mono)
                    position = end
                    if end > start:
                        yield mono[max(0, start - begin) : None if stop is None else max(0, stop - begin)]
                if stop is not None and position >= stop:
                    return
        except (av.FFmpegError, ValueError, OSError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"unreadable audio: {_short(error)}") from error
    if (position or 0) < least:
        raise DataError(f"unreadable audio: it breaks off at {(position or 0) / rate_hz:.2f} s, before its length says")


def _joined(frames: Iterator[npt.NDArray[np.float32]], rate_hz: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield longer blocks: a packet is a few hundredths of a second."""
    held: list[npt.NDArray[np.float32]] = []
    length = 0
    for frame in frames:
        if not np.isfinite(frame).all():
            raise DataError("unreadable audio: it holds values that are not numbers")
        held.append(frame)
        length += len(frame)
        if length >= _BLOCK_SECONDS * rate_hz:
            yield np.concatenate(held)
            held, length = [], 0
    if held:
        yield np.concatenate(held)


def _short(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
