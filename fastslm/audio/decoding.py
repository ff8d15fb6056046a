"""Encoded audio of any format and rate to int16 mono at 16 kHz, in blocks: no long file is in memory as floats.

The one decoder of the package: for recordings inside shards, which are read whole or in part, and for files in use.
What lies in a file is decoded to its end, whatever the header says; where the two differ is told.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, BinaryIO

import soundfile

from fastslm.audio.ffmpeg import PREROLL_SECONDS, av_blocks, av_info, av_told_seconds, has_av, needs_av
from fastslm.audio.flac import flac_streams, is_flac
from fastslm.audio.info import AudioInfo
from fastslm.audio.joined import begins_of
from fastslm.audio.mp3 import mp3_stream
from fastslm.audio.ogg import ogg_streams
from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.audio.resampling import Blocks, check_rate, resampled
from fastslm.audio.stale_headers import stale_stream
from fastslm.audio.streams import LONGEST_SECONDS, SLACK_SECONDS, Clamped, Stream, after_id3, excerpt, size_of
from fastslm.audio.wav import is_wav, wav_streams
from fastslm.audio.whole import check_whole
from fastslm.errors import DataError
from fastslm.path.batch import Int16Array

BLOCK_SECONDS = 10
#: What lies under the names of recordings, by how it begins.
_NO_AUDIO = {
    b"version https://git-lfs": "a pointer of Git LFS, and not the file: git lfs pull fetches it",
    b"<!doctype html": "a page of HTML, such as a server's message instead of the file",
    b"<html": "a page of HTML, such as a server's message instead of the file",
    b"\x1f\x8b": "packed with gzip: unpack it first",
    b"pk\x03\x04": "a zip: unpack it first",
}
_DECODE_SECONDS = 30  # of a block where the whole is wanted anyway: most recordings of a corpus are then one


def streams_of(file: BinaryIO, thorough: bool = True) -> list[Stream]:
    """Return the streams that lie end to end in a file, and which decoder reads each.

    Args:
        file: it.
        thorough: look for a second stream in all of it, where the first alone does not say that it ends.

    Raises:
        DataError: it breaks off before its header says.
    """
    file.seek(0)
    head = file.read(64)
    if not head:
        raise DataError("unreadable audio: it is empty (0 bytes)")
    for begin, what in _NO_AUDIO.items():
        if head.lstrip().lower().startswith(begin):
            raise DataError(f"unreadable audio: it is {what}")
    begins = begins_of(file)
    if len(begins) > 1:
        ends = [*begins[1:], size_of(file)]
        files = [excerpt(file, begin, end - begin) for begin, end in zip(begins, ends, strict=True)]
        return [stream for one in files for stream in streams_of(one, thorough)]
    try:
        if needs_av(file):
            check_whole(file)
            return [Stream(file, "av")]
        if is_wav(head):
            return list(wav_streams(file))
        if head[:4] == b"OggS":
            return list(ogg_streams(file, thorough))
        if is_flac(file):
            return list(flac_streams(file, thorough))
        return [stale_stream(file) or mp3_stream(file) or _other(file)]
    finally:
        file.seek(0)


def _other(file: BinaryIO) -> Stream:
    begin = after_id3(file)
    if 0 < begin < size_of(file):  # FFmpeg looks for the format in the first megabyte, which a picture may fill
        file = excerpt(file, begin, size_of(file) - begin)
    file.seek(0)
    try:
        is_exact = not soundfile.info(Clamped(file)).subtype.startswith("MPEG")
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        is_exact = False
    return Stream(file, "sound" if is_exact or not has_av() else "av")


def read_info(file: BinaryIO) -> AudioInfo:
    """Return what an audio file holds; its bytes are looked at, and not decoded.

    Raises:
        DataError: it is no audio that can be read, or breaks off.
        MissingExtraError: it needs the extra ``av``.
    """
    streams = streams_of(file)
    infos = [_info(stream) for stream in streams]
    seconds = sum(info.seconds for info in infos)
    first = infos[0]
    remarks = tuple(itertools.chain(*(info.remarks for info in infos), _remarks(streams, seconds)))
    num_frames = first.num_frames if len(infos) == 1 else round(seconds * first.sample_rate_hz)
    return AudioInfo(num_frames, first.sample_rate_hz, first.num_channels, first.codec, remarks)


def _info(stream: Stream) -> AudioInfo:
    if stream.decoder == "av":
        # between MP3s there may be anything, of which packets are made too
        info = av_info(stream.file, decode=bool(stream.why))
        _check_length(stream, info.seconds)
        return info
    stream.file.seek(0)
    with _as_data_error():
        found = soundfile.info(Clamped(stream.file))
    _check_sound(found)
    return AudioInfo(found.frames, found.samplerate, found.channels, f"{found.format}/{found.subtype}".lower())


def told_seconds(file: BinaryIO) -> float:
    """Return how long a file is; of a video's container the header is asked, where it says so, and not all of it read.

    Raises:
        DataError: it is no audio that can be read, or breaks off.
        MissingExtraError: it needs the extra ``av``.
    """
    total = 0.0
    for stream in streams_of(file):
        told = av_told_seconds(stream.file) if stream.decoder == "av" and needs_av(stream.file) else None
        total += _info(stream).seconds if told is None else told
    return total


def decode(
    file: BinaryIO,
    start_seconds: float = 0.0,
    stop_seconds: float | None = None,
    channel: int | None = None,
    remarks: list[str] | None = None,
) -> Int16Array:
    """Return int16 mono samples ``[N]`` at 16 kHz of a file, or of a part of it.

    Memory: the samples returned and one block.

    Args:
        file: encoded audio, seekable.
        start_seconds: where to begin.
        stop_seconds: where to end; None means its end.
        channel: the one that is wanted, from 0; None mixes all.
        remarks: takes what is doubtful, of the form ``reason: detail``.

    Raises:
        DataError: the audio cannot be decoded to its end, or holds no samples.
        MissingExtraError: it needs the extra ``av``.
    """
    return _collected(decoded(file, start_seconds, stop_seconds, channel, remarks, _DECODE_SECONDS))


def decoded(
    file: BinaryIO,
    start_seconds: float = 0.0,
    stop_seconds: float | None = None,
    channel: int | None = None,
    remarks: list[str] | None = None,
    block_seconds: int = BLOCK_SECONDS,
) -> Iterator[Int16Array]:
    """Yield what ``decode`` returns in blocks of ``block_seconds``; ``remarks`` are whole at the end.

    Raises:
        DataError: the audio cannot be decoded to its end, or holds no samples.
        MissingExtraError: it needs the extra ``av``.
    """
    is_whole = start_seconds <= 0.0 and stop_seconds is None
    streams = streams_of(file, thorough=is_whole)
    if not is_whole and len(streams) == 1:
        blocks = _blocks(streams[0], block_seconds, max(0.0, start_seconds), stop_seconds)
        first = next(blocks, None)
        if first is None:  # behind the end of the first stream
            streams = streams_of(file)
            blocks = _between(_all_blocks(streams, block_seconds), start_seconds, stop_seconds)
        else:
            blocks = itertools.chain([first], blocks)
    else:
        blocks = _between(_all_blocks(streams, block_seconds, remarks), start_seconds, stop_seconds)
    length = 0
    for samples in resampled(blocks, channel, remarks):
        length += len(samples)
        yield samples
    if not length:
        raise DataError("unreadable audio: it holds no samples")


def _collected(chunks: Iterator[Int16Array]) -> Int16Array:
    """Return chunks end to end, in one array that grows in place: no header decides how much memory is taken."""
    samples = next(chunks)
    length = len(samples)
    for number, chunk in enumerate(chunks):
        if number == 0:  # most recordings are one block, which need not be copied
            samples = samples.copy()
        if length + len(chunk) > len(samples):
            samples.resize(length + max(len(chunk), length // 8), refcheck=False)
        samples[length : length + len(chunk)] = chunk
        length += len(chunk)
    if length < len(samples):
        samples.resize(length, refcheck=False)
    return samples


def _all_blocks(streams: list[Stream], block_seconds: int, remarks: list[str] | None = None) -> Blocks:
    """Yield rate and blocks of all streams of a file, end to end."""
    total = 0.0
    for stream in streams:
        seconds = 0.0
        for rate_hz, block in _blocks(stream, block_seconds, remarks=remarks):
            seconds += len(block) / rate_hz
            yield rate_hz, block
        if stream.decoder == "av":
            _check_length(stream, seconds)
        total += seconds
    if remarks is not None:
        remarks += _remarks(streams, total)


def _between(blocks: Blocks, start_seconds: float, stop_seconds: float | None) -> Blocks:
    """Yield what lies between two times; everything before is read."""
    position = 0.0
    for rate_hz, block in blocks:
        begin, position = position, position + len(block) / rate_hz
        first = max(0, round((start_seconds - begin) * rate_hz))
        last = None if stop_seconds is None else max(0, round((stop_seconds - begin) * rate_hz))
        if first < len(block) and last != 0:
            yield rate_hz, block[first:last]
        if stop_seconds is not None and position >= stop_seconds:
            return


def _blocks(
    stream: Stream,
    block_seconds: int,
    start_seconds: float = 0.0,
    stop_seconds: float | None = None,
    remarks: list[str] | None = None,
) -> Blocks:
    """Yield rate and blocks ``[n, channels]`` of a stream or a part of it, int16 where that is ready for use.

    Raises:
        DataError: it ends before its header says.
    """
    if stream.decoder == "av":
        yield from av_blocks(stream.file, start_seconds, stop_seconds, remarks)
        return
    stream.file.seek(0)
    with _as_data_error(), _Sound(Clamped(stream.file)) as sound:
        _check_sound(sound)
        rate_hz = sound.samplerate
        start = round(start_seconds * rate_hz)
        stop = sound.frames if stop_seconds is None else min(sound.frames, round(stop_seconds * rate_hz))
        if 0 < start < stop:
            sound.go_to(start, block_seconds * rate_hz)
        ready = (sound.subtype, sound.channels, rate_hz) == ("PCM_16", 1, SAMPLE_RATE_HZ)
        while start < stop:
            size = min(stop - start, block_seconds * rate_hz)
            block = sound.read(size, dtype="int16" if ready else "float32", always_2d=True)
            if not len(block):
                at, missing = start / rate_hz, (stop - start) / rate_hz
                if sound.format == "OGG":  # its whole pages were counted: the length is the time of the last one
                    end = sound.frames / rate_hz
                    raise DataError(
                        f"unreadable audio: its pages end at {end:.2f} s and hold {missing:.2f} s less: packets are "
                        "missing. ffmpeg -i IN OUT.flac makes a file of those that are there"
                    )
                raise DataError(
                    f"unreadable audio: it breaks off at {at:.2f} s, {missing:.2f} s before its header says"
                )
            start += len(block)
            yield rate_hz, block


class _Sound(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    """A sound that is read on where the last read ended.

    soundfile seeks there behind each read of what is seekable, and libsndfile then decodes an MP3 from there anew.
    """

    def seekable(self) -> bool:
        """Say that it is not."""
        return False

    def go_to(self, start: int, block: int) -> None:
        """Go from the begin to a sample; what the decoder must have read before is read (all of it in GSM)."""
        left = start
        if super().seekable():
            needed = round(PREROLL_SECONDS * self.samplerate) if self.subtype.startswith("MPEG") else 0
            left = min(start, needed)
            self.seek(start - left)
        while left and (num_read := len(self.read(min(left, block), dtype="float32"))):
            left -= num_read


# -- what a header says, and what is there ----------------------------------------------------------------------------


def _check_length(stream: Stream, seconds: float) -> None:
    """Raise where a stream that is read to its end is shorter than it says."""
    if stream.claimed_seconds is None or stream.claimed_seconds >= LONGEST_SECONDS:
        return
    missing = stream.claimed_seconds - stream.begins_seconds - seconds
    if missing > SLACK_SECONDS:
        raise DataError(f"unreadable audio: it breaks off at {seconds:.2f} s, {missing:.2f} s before its header says")


def _remarks(streams: list[Stream], seconds: float) -> list[str]:
    """Return in what a file differs from what its header says."""
    first = streams[0]
    why = first.why or (f"{len(streams)} files put end to end" if len(streams) > 1 else "")
    if not why or first.claimed_seconds is None or abs(first.claimed_seconds - seconds) <= SLACK_SECONDS:
        return [f"streams end to end: {len(streams)} in one file"] if len(streams) > 1 else []
    return [
        f"length differs from header: it says {first.claimed_seconds:.2f} s, the file holds {seconds:.2f} s ({why})"
    ]


def _check_sound(sound: Any) -> None:
    """Raise where a header cannot be true; for ``soundfile.SoundFile`` and what ``soundfile.info`` returns."""
    if sound.format == "MPC2K":  # of a sampler; told by two bytes, with which samples without a header may begin, too
        raise DataError("unreadable audio: it is no format of recordings; raw samples need a header, such as WAV's")
    check_rate(sound.samplerate)
    if sound.frames <= 0 or sound.channels <= 0:
        raise DataError("unreadable audio: it holds no samples")
    if sound.frames > LONGEST_SECONDS * sound.samplerate:
        seconds = sound.frames / sound.samplerate
        raise DataError(f"unreadable audio: its header says {seconds:.3g} s, and its bytes do not tell its length")


@contextlib.contextmanager
def _as_data_error() -> Iterator[None]:
    try:
        yield
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        what = str(error).rpartition(": ")[2].strip() or type(error).__name__
        raise DataError(f"unreadable audio: {what}") from error
