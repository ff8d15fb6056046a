"""Audio that libsndfile cannot read (m4a, aac, webm, the sound of videos) through FFmpeg, by the package PyAV."""

import importlib.util
import itertools
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fastslm.audio.info import AudioInfo
from fastslm.audio.joined import mp4_boxes
from fastslm.audio.resampling import Blocks, check_rate
from fastslm.audio.streams import Clamped
from fastslm.errors import DataError, MissingExtraError

_PURPOSE = "audio in m4a, aac, webm, a video, an MP3 that does not tell its length, or a file cut without encoding"
#: What a decoder needs before its output can be trusted. An MP3 needs most: a frame may take bits from the 255 bytes
#: before it, and in the pauses of one of changing bit rate (24 kHz, stereo) these are 85 frames, of 24 ms each.
PREROLL_SECONDS = 2.5
_HEADER_TOLERANCE_SECONDS = 0.5  # by which a container misstates a length: an encoder's delay and its last packet
_LOST_SECONDS = 0.25  # of a stream without an index that may be undecodable
_DOUBTFUL_SECONDS = 0.25  # by which times of packets may differ from what they hold: an encoder's delay is up to 0.1 s
_BLOCK_SECONDS = 10
_BY_DURATION = ("mp3", "mp3float", "mp2", "mp2float")
#: Whose index leads to the place that it says; others are decoded from their beginning.
_INDEXED = {"mov", "matroska"}
#: From which type of a frame on AMR has none of speech, where nobody spoke (DTX). FFmpeg's decoder lacks these.
_PAUSES = {"amrnb": 8, "amrwb": 9}
_PAUSE_BYTES = 6  # at most, in a frame that says how a pause sounds; one of speech has 13 or more
#: Streams without a container, for whose packets FFmpeg makes up times: rounded ones, and all at the rate of the first.
_BARE = {"aac", "ac3", "eac3", "dts"}
#: Whose header tells how long they are; of other files FFmpeg guesses it from their bit rate.
_TELLING = {"mov", "matroska", "asf", "flv", "caf", "tta", "wv", "rm"}
#: Formats that recordings come in, by FFmpeg's names. It knows hundreds more, of games and instruments, and tells some
#: of them by so few bytes that samples without a header and damaged files pass for them, and become noise.
_RECORDINGS = {
    "aa", "aac", "ac3", "ac4", "act", "aea", "aiff", "amr", "amrnb", "amrwb", "ape", "asf", "asf_o", "au", "avi", "avr",
    "caf", "codec2", "dhav", "dsf", "dss", "dts", "dtshd", "dv", "eac3", "flac", "flv", "gsm", "gxf", "iamf", "iff",
    "ilbc", "ircam", "lc3", "live_flv", "loas", "matroska", "mlp", "mov", "mp3", "mpc", "mpc8", "mpeg", "mpegts", "mxf",
    "nistsphere", "nut", "nuv", "ogg", "oma", "osq", "pvf", "qcp", "qoa", "rm", "sbc", "sds", "shn", "sox", "swf",
    "tak", "truehd", "tta", "ty", "voc", "vqf", "w64", "wav", "wsd", "wtv", "wv", "wve", "xwma",
}  # fmt: skip
#: Matroska and WebM, ASF, AMR, Flash, SoX, and VOC, of whose later blocks libsndfile takes the headers for samples.
_CONTAINERS = (b"\x1aE\xdf\xa3", b"\x30\x26\xb2\x75", b"#!AMR", b"FLV\x01", b".SoX", b"XoS.", b"Creative Voi")


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
        raise MissingExtraError("av", extra="av", purpose=_PURPOSE) from None
    av.logging.set_level(None)
    file.seek(0, os.SEEK_SET)
    try:  # a playlist must not open other files
        container = av.open(Clamped(file), "r", metadata_errors="replace", options={"protocol_whitelist": "none"})
    except (av.FFmpegError, ValueError, OSError) as error:
        if needs_av(file) and b"moov" not in (boxes := [name for _, name in mp4_boxes(file)]) and b"mdat" in boxes:
            why = "its index (the box moov) is missing: it is cut off, or its recording was not finished"
            raise DataError(f"unreadable audio: {why}") from error
        bare = "; raw samples need a header, such as WAV's" * isinstance(error, av.error.InvalidDataError)
        raise DataError(f"unreadable audio: {_short(error)}{bare}") from error
    try:
        if not container.streams.audio:
            raise DataError("unreadable audio: it holds no audio stream")
        if (name := _name(container)) not in _RECORDINGS:
            raise DataError(
                f"unreadable audio: to FFmpeg it looks like {name!r}, which is no format of recordings; raw samples"
                " need a header, such as WAV's"
            )
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            why = "FFmpeg has no decoder for its codec; convert it with a program that has one"
            raise DataError(f"unreadable audio: {why}")
        check_rate(stream.sample_rate or 0)
    except DataError:
        container.close()
        raise
    return container, stream


def _name(container: Any) -> str:
    return str(container.format.name).split(",")[0]


def av_info(file: BinaryIO, decode: bool = False) -> AudioInfo:
    """Return what FFmpeg says of a file: its first sound track, counted by packets, which are not decoded.

    Args:
        file: it.
        decode: decode it to its end for its length; so it is done, too, where its packets have doubtful times or none.

    Raises:
        DataError: it cannot be read, or holds no audio.
        MissingExtraError: PyAV is not installed.
    """
    container, stream = _open(file)
    import av

    with container:
        try:
            seconds, skipped, is_doubtful = _by_packets(stream, container.demux(stream))
        except (av.FFmpegError, ValueError, OSError) as error:
            raise DataError(f"unreadable audio: {_short(error)}") from error
        rate_hz = int(stream.sample_rate)
        num_frames = round(seconds * rate_hz) - skipped
        remarks = _track_remarks(container)
        if not (decode or is_doubtful or container.format.name in _BARE):
            _check_least(seconds, _least_seconds(container, stream))
        else:
            remarks = []
            num_frames = round(rate_hz * sum(len(block) / rate for rate, block in av_blocks(file, remarks=remarks)))
        if num_frames <= 0:
            raise DataError("unreadable audio: it holds no samples")
        return AudioInfo(num_frames, rate_hz, int(stream.channels), str(stream.codec_context.name), tuple(remarks))


def _by_packets(stream: Any, packets: Iterable[Any]) -> tuple[float, int, bool]:
    """Return the seconds that packets last, how many samples of them the decoder will leave out, and doubts.

    A raw stream has no header that tells it, and others may be wrong. Times are used where a container has them; MP3
    has none, and its packets note what their encoder added. Times are in doubt where they have holes or begin anew,
    there are none, or nothing says how long the last packet is (a block of WavPack may last for seconds).
    """
    end = lasting = skipped = longest = last = 0
    begin = max(stream.start_time or 0, 0)
    is_first = all_last = True
    for packet in packets:
        lasting += packet.duration or 0
        longest = max(longest, packet.duration or 0)  # in MP4 the packet before a hole lasts until its end
        last = (packet.duration or 0) if packet.size else last
        all_last &= bool(packet.duration or not packet.size)
        left_out = _left_out(packet) if is_first or stream.codec_context.name in _BY_DURATION else (0, 0)
        if stream.codec_context.name in _BY_DURATION:
            skipped += sum(left_out)
        elif packet.pts is not None:
            if is_first:  # see _origin
                begin = min(begin, max(packet.pts + round(left_out[0] / stream.sample_rate / stream.time_base), 0))
            end = max(end, packet.pts + (packet.duration or 0))
        is_first = False
    if stream.codec_context.name in _BY_DURATION:
        return float(lasting * stream.time_base), skipped, False
    by_times = float((end - begin) * stream.time_base)
    differs = all_last and abs(by_times - float(lasting * stream.time_base)) > _DOUBTFUL_SECONDS
    has_hole = float(longest * stream.time_base) > _DOUBTFUL_SECONDS
    return by_times, skipped, differs or has_hole or last <= 0 or by_times <= 0


def _left_out(packet: Any) -> tuple[int, int]:
    """Return how many samples the decoder leaves out at a packet's begin and end, as its encoder noted."""
    noted = [bytes(d) for d in packet.iter_sidedata() if "skip_samples" in str(d.data_type).lower()]
    pairs = [struct.unpack("<II", data[:8]) for data in noted]
    return sum(begin for begin, _ in pairs), sum(end for _, end in pairs)


def av_told_seconds(file: BinaryIO) -> float | None:
    """Return the seconds that the header gives for the sound, None where it gives none.

    Raises:
        DataError: it cannot be read, or holds no audio.
        MissingExtraError: PyAV is not installed.
    """
    container, stream = _open(file)
    with container:
        seconds = None if stream.duration is None else float(stream.duration * stream.time_base)
        if seconds is None and container.duration is not None:
            seconds = float(container.duration / 1_000_000)
        return seconds


def av_blocks(
    file: BinaryIO, start_seconds: float = 0.0, stop_seconds: float | None = None, remarks: list[str] | None = None
) -> Blocks:
    """Yield rate and float32 blocks ``[n, channels]`` of a file or a part of it, which is gone through once.

    Args:
        file: it.
        start_seconds: where to begin.
        stop_seconds: where to end; None means its end.
        remarks: takes what is doubtful about it, of the form ``reason: detail``.

    Raises:
        DataError: it cannot be read to its end.
        MissingExtraError: PyAV is not installed.
    """
    return _joined(_cut(file, start_seconds, stop_seconds, remarks))


def _cut(file: BinaryIO, start: float, stop: float | None, remarks: list[str] | None) -> Blocks:
    container, stream = _open(file)
    import av

    with container:
        try:
            is_mpeg = stream.codec_context.name in _BY_DURATION
            least = _least_seconds(container, stream)
            place = max(0.0, start - PREROLL_SECONDS)
            origin, skip_to = None, None
            if start and is_mpeg:
                origin = max(stream.start_time or 0, 0)
                skip_to = origin + place / stream.time_base
            elif start and _name(container) in _INDEXED:
                origin = _origin(next(container.decode(stream), None))
                container.seek(origin + int(place / stream.time_base), stream=stream)
            position, end, lost = None, 0.0, 0.0
            for frame in _frames(container, stream, skip_to):
                if isinstance(frame, float):
                    lost += frame
                    continue
                origin = _origin(frame) if origin is None else origin
                at = None if frame.pts is None else float((frame.pts - origin) * frame.time_base)
                if position is None:
                    position = at or 0.0
                seconds = frame.samples / frame.sample_rate
                begin, position = position, position + seconds
                end = max(end, (begin if at is None or is_mpeg else at) + seconds)
                first = max(0, round((start - begin) * frame.sample_rate))
                last = None if stop is None else max(0, round((stop - begin) * frame.sample_rate))
                if frame.samples > first:
                    block = frame.to_ndarray() if frame.format.name == "fltp" else _planar(frame).to_ndarray()
                    yield frame.sample_rate, block[:, first:last].T
                if stop is not None and position >= stop:
                    return
        except (av.FFmpegError, ValueError, OSError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"unreadable audio: {_short(error)}") from error
        found = position or 0.0
        if lost > _LOST_SECONDS:
            raise DataError(f"unreadable audio: {lost:.2f} s of {lost + found:.2f} s cannot be decoded")
        if position is not None or not start:  # a part behind the end has no frames
            _check_least(end, least if stop is None else min(least, stop))
        if remarks is not None:
            remarks += _track_remarks(container)
            if not start and abs(end - found) > _DOUBTFUL_SECONDS:
                says = f"the times of its packets say {end:.2f} s, the file holds {found:.2f} s"
                remarks.append(f"length differs from header: {says} (holes, or times that begin anew)")


def _origin(first: Any) -> int:
    """Return the time of the first sound, by the first frame that is decoded, in the stream's unit.

    FFmpeg tells the time of a packet: for Opus in Matroska the second one's; the first of Vorbis or WMA has no sound.
    """
    return getattr(first, "pts", None) or 0


def _least_seconds(container: Any, stream: Any) -> float:
    """Return what the sound lasts at least by its header; 0 where that does not tell."""
    if _name(container) not in _TELLING or stream.codec_context.name in _BY_DURATION:
        return 0.0
    told = float((stream.duration or 0) * stream.time_base)
    if not told and len(container.streams) == 1:  # Matroska tells the length of the whole
        told = ((container.duration or 0) - max(container.start_time or 0, 0)) / 1_000_000
    return told - _HEADER_TOLERANCE_SECONDS


def _check_least(found: float, least: float) -> None:
    if found < least:
        raise DataError(f"unreadable audio: it breaks off at {found:.2f} s, before its length says")


def _frames(container: Any, stream: Any, skip_to: Any) -> Iterator[Any]:
    """Yield decoded frames; for a packet that cannot be decoded, its seconds, where a file may have such.

    MP3s are put end to end with tags and rubbish between them, over which every player goes on, and a stream without an
    index (ADTS, MPEG-TS) may be cut within a packet.
    """
    import av

    may_lose = stream.codec_context.name in _BY_DURATION or _name(container) not in _TELLING
    for packet in container.demux(stream):
        if skip_to is not None and packet.pts is not None and packet.pts < skip_to:
            continue
        try:
            frames = [_silence(packet)] if _is_pause(packet) else packet.decode()
        except av.FFmpegError:  # AC-3 has numbers of its own for it
            if not may_lose:
                raise
            frames = [float((packet.duration or 0) * stream.time_base)]
        yield from frames


def _is_pause(packet: Any) -> bool:
    first = _PAUSES.get(packet.stream.codec_context.name)
    if first is None or not 0 < packet.size <= _PAUSE_BYTES:
        return False
    return (bytes(packet)[0] >> 3) & 15 >= first


def _silence(packet: Any) -> Any:
    import av

    stream = packet.stream
    samples = round(packet.duration * packet.time_base * stream.sample_rate)
    frame = av.AudioFrame.from_ndarray(np.zeros((stream.channels, samples), np.float32), "fltp", stream.layout.name)
    frame.sample_rate, frame.pts, frame.time_base = stream.sample_rate, packet.pts, packet.time_base
    return frame


def _track_remarks(container: Any) -> list[str]:
    stream, count = container.streams.audio[0], len(container.streams.audio)
    remarks = [f"several sound tracks: {count}, of which the first is taken"] if count > 1 else []
    late = float((stream.start_time or 0) * stream.time_base) - (container.start_time or 0) / 1_000_000
    if late > _DOUBTFUL_SECONDS:
        remarks.append(f"late sound: it begins {late:.2f} s behind the file; times are counted from its own begin")
    return remarks


def _planar(frame: Any) -> Any:
    import av

    (planar,) = av.AudioResampler(format="fltp").resample(frame)
    return planar


def _joined(frames: Blocks) -> Blocks:
    """Yield longer blocks: a packet is a few hundredths of a second."""
    for (rate_hz, _), same in itertools.groupby(frames, key=lambda item: (item[0], item[1].shape[1])):
        held: list[npt.NDArray[Any]] = []
        length = 0
        for _, block in same:
            held.append(block)
            length += len(block)
            if length >= _BLOCK_SECONDS * rate_hz:
                yield rate_hz, np.concatenate(held)
                held, length = [], 0
        if held:
            yield rate_hz, np.concatenate(held)


def _short(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
