"""Audio that libsndfile cannot read (m4a, aac, webm, the sound of videos) through FFmpeg, by the package PyAV."""

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fastslm.errors import DataError, MissingExtraError

_MAX_RATE_HZ = 768_000
_PREROLL_SECONDS = 0.2  # what a decoder needs to hear before its output can be trusted
_TOLERANCE_SECONDS = 0.25  # by which containers misstate a length: an encoder's delay and its last packet
_BLOCK_SECONDS = 10
_CONTAINERS = (b"\x1aE\xdf\xa3", b"\x30\x26\xb2\x75", b"#!AMR", b"FLV\x01")  # Matroska and WebM, ASF, AMR, Flash


def needs_av(file: BinaryIO) -> bool:
    """Say whether the first bytes of a file are those of a container or codec that libsndfile lacks."""
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    adts = len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0  # an MP3 has its layer where this has zeros
    return (
        adts or head[4:8] == b"ftyp" or head.startswith((b"\x1aE\xdf\xa3", b"\x30\x26\xb2\x75", b"#!AMR", b"FLV\x01"))
    )


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


def _seconds(container: Any, stream: Any) -> float:
    """Return the duration by the packets: a raw AAC stream has no header that tells it, and others may be wrong."""
    end = 0
    for packet in container.demux(stream):
        if packet.pts is not None:
            end = max(end, packet.pts + (packet.duration or 0))
    start = max(stream.start_time or 0, 0)
    return float((end - start) * stream.time_base)


def av_blocks(
    file: BinaryIO, start_seconds: float, stop_seconds: float | None
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
    whole = stop_seconds is None or stop == num_frames
    return rate_hz, stop - start, _joined(_cut(file, rate_hz, start, None if whole else stop, num_frames), rate_hz)


def _cut(
    file: BinaryIO, rate_hz: int, start: int, stop: int | None, num_frames: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the mono frames from ``start`` on, up to ``stop`` or the end."""
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
    missing = (num_frames if stop is None else stop) - (position or 0)
    if missing > _TOLERANCE_SECONDS * rate_hz:
        raise DataError(f"unreadable audio: it ends {missing / rate_hz:.2f} s before its packets say")


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
