"""What libsndfile cannot read (m4a, aac, webm, the sound of videos), through FFmpeg by the optional package PyAV."""

import importlib.util
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fastslm.errors import DataError, MissingExtraError

_BLOCK_SECONDS = 10
_TOLERANCE_SECONDS = 0.5  # by which containers misstate a length: an encoder's delay and its last packet


def needs_av(file: BinaryIO) -> bool:
    """Say whether the first bytes of a file are those of a container or codec that libsndfile lacks."""
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    adts = len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0  # an MP3 has its layer where this has zeros
    avi = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    starts = (b"\x1aE\xdf\xa3", b"\x30\x26\xb2\x75", b"#!AMR", b"FLV\x01")
    return adts or avi or head[4:8] == b"ftyp" or head.startswith(starts)


def has_av() -> bool:
    """Say whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def _open(file: BinaryIO) -> tuple[Any, Any]:
    try:
        import av
    except ImportError:
        raise MissingExtraError("av", extra="av", purpose="audio in m4a, aac, webm or a video") from None
    file.seek(0, os.SEEK_SET)
    try:
        container = av.open(file, "r", metadata_errors="replace")
    except (av.FFmpegError, ValueError, OSError) as error:
        raise DataError(f"unreadable audio: {_short(error)}") from error
    if not container.streams.audio:
        container.close()
        raise DataError("unreadable audio: it holds no audio stream")
    stream = container.streams.audio[0]
    if not stream.sample_rate or not stream.channels:
        container.close()
        raise DataError("unreadable audio: its header gives no sample rate")
    return container, stream


def av_seconds(file: BinaryIO) -> float | None:
    """Return the seconds that the container gives for its sound, or None where it does not say.

    Raises:
        DataError: it cannot be read, or holds no sound.
        MissingExtraError: PyAV is not installed.
    """
    container, stream = _open(file)
    with container:
        return _seconds(container, stream)


def _seconds(container: Any, stream: Any) -> float | None:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else float(container.duration / 1_000_000)


def av_blocks(file: BinaryIO) -> tuple[int, Iterator[npt.NDArray[np.float32]]]:
    """Return samples per second, and mono blocks from the start.

    Raises:
        DataError: it cannot be read to its end.
        MissingExtraError: PyAV is not installed.
    """
    container, stream = _open(file)
    return int(stream.sample_rate), _joined(_decoded(container, stream), int(stream.sample_rate))


def _decoded(container: Any, stream: Any) -> Iterator[npt.NDArray[np.float32]]:
    import av

    num_frames, rate_hz = 0, int(stream.sample_rate)
    expected = stream.duration and float(stream.duration * stream.time_base)
    with container:
        converter = av.AudioResampler(format="fltp")
        try:
            for frame in container.decode(stream):
                if frame.sample_rate != rate_hz:
                    raise DataError(f"unreadable audio: its sample rate changes to {frame.sample_rate} Hz")
                for part in converter.resample(frame):
                    yield (mono := part.to_ndarray().mean(axis=0, dtype=np.float32))
                    num_frames += len(mono)
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"unreadable audio: at {num_frames / rate_hz:.2f} s: {_short(error)}") from error
    seconds = num_frames / rate_hz
    if expected and expected - seconds > _TOLERANCE_SECONDS:
        raise DataError(f"unreadable audio: it breaks off at {seconds:.2f} s of {expected:.2f} s")


def _joined(frames: Iterator[npt.NDArray[np.float32]], rate_hz: int) -> Iterator[npt.NDArray[np.float32]]:
    """Return longer blocks: a packet is a few hundredths of a second."""
    held: list[npt.NDArray[np.float32]] = []
    length = 0
    for frame in frames:
        held.append(frame)
        length += len(frame)
        if length >= _BLOCK_SECONDS * rate_hz:
            yield np.concatenate(held)
            held, length = [], 0
    if held:
        yield np.concatenate(held)


def _short(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
