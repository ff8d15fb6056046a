"""Audio of any length and format as int16 blocks, mono at 16 kHz: an eight-hour file is never in memory as a whole."""

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from fastslm.batch import Int16Array
from fastslm.errors import DataError
from fastslm.mel import SAMPLE_RATE_HZ

from .av_audio import av_blocks, av_seconds, has_av, needs_av

Blocks: TypeAlias = Iterator[npt.NDArray[np.float32]]

BLOCK_SECONDS = 10
#: What a folder is searched for.
EXTENSIONS = frozenset(
    {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".aifc", ".au", ".caf", ".w64"}  # soundfile
    | {".m4a", ".aac", ".mp4", ".mkv", ".mov", ".webm", ".wma", ".amr", ".avi"}  # PyAV
)
_MAX_RATE_HZ = 768_000
#: libsndfile's note on a WAV that is shorter than its header says; it reads what is there without a word.
_SHORT_WAV = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_BYTES = 0x7FFF0000  # from here on, what programs write that did not know the length (to a pipe)
_OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # of the largest page


class AudioSource:
    """Audio that can be read from the start as often as needed.

    Attributes:
        name: what to call it.
        seconds: what its header says; None where only reading tells.
    """

    name: str = "audio"
    seconds: float | None = None

    def blocks(self) -> Iterator[Int16Array]:
        """Return its samples from the start, in blocks of seconds.

        Raises:
            DataError: it cannot be read to its end, or holds no samples.
        """
        raise NotImplementedError


class ArraySource(AudioSource):
    """Samples that are in memory already.

    Args:
        samples: ``[N]`` or ``[N, channels]``; floats in -1..1, or int16.
        sample_rate_hz: samples per second.
        name: what to call it.

    Attributes:
        samples: ``[N]`` or ``[N, channels]``.
    """

    def __init__(self, samples: Any, sample_rate_hz: int = SAMPLE_RATE_HZ, name: str = "audio") -> None:
        self.samples, self._rate_hz = _as_array(samples), sample_rate_hz
        _check_rate(sample_rate_hz)
        self.name, self.seconds = name, len(self.samples) / sample_rate_hz

    def blocks(self) -> Iterator[Int16Array]:
        """Return its samples in blocks."""
        if not len(self.samples):
            raise DataError("the audio holds no samples")
        size = BLOCK_SECONDS * self._rate_hz
        resampler = Resampler(self._rate_hz)
        for begin in range(0, len(self.samples), size):
            yield resampler.push(self.samples[begin : begin + size])
        yield resampler.finish()


class FileSource(AudioSource):
    """A file in any format that soundfile reads, or PyAV where it is installed.

    Args:
        path: the file.
        name: what to call it; the path if None.

    Raises:
        DataError: it is not there, or no audio.
        MissingExtraError: it needs the extra ``av``.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self.name = path, str(path) if name is None else name
        with self._open() as file:
            self._with_av = needs_av(file)
            if not self._with_av:
                try:
                    with _sound(file) as sound:
                        self.seconds = sound.frames / sound.samplerate
                    return
                except DataError as error:
                    if not has_av() or "Format not recognised" not in str(error):
                        raise
                    self._with_av = True
            self.seconds = av_seconds(file)

    def _open(self) -> BinaryIO:
        if self.path.is_dir():
            raise DataError("it is a folder")
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise DataError(f"cannot be opened: {error.strerror}") from error
        if not os.fstat(file.fileno()).st_size:
            file.close()
            raise DataError("the file is empty")
        return file

    def blocks(self) -> Iterator[Int16Array]:
        """Return its samples in blocks."""
        num_samples = 0
        with self._open() as file, contextlib.ExitStack() as stack:
            if self._with_av:
                rate_hz, blocks = av_blocks(file)
            else:
                sound = stack.enter_context(_sound(file))
                rate_hz, blocks = sound.samplerate, _sound_blocks(sound)
            resampler = Resampler(rate_hz)
            for block in blocks:
                yield (samples := resampler.push(block))
                num_samples += len(samples)
            yield (samples := resampler.finish())
        if num_samples + len(samples) == 0:
            raise DataError("unreadable audio: it holds no samples")


class DownloadedSource(FileSource):
    """What came from elsewhere, in a temporary file that goes with this object.

    Args:
        stream: the bytes, read to their end.
        name: what to call it.
    """

    def __init__(self, stream: Any, name: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fastslm-")
        path = Path(self._folder.name) / "audio"
        with open(path, "wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
        super().__init__(path, name)


def open_audio(audio: Any, sample_rate_hz: int | None = None) -> AudioSource:
    """Return audio in whatever form it comes.

    Args:
        audio: a path, a URL, ``-`` for standard input, an ``AudioSource``, or samples (NumPy, torch or a list).
        sample_rate_hz: of samples; None means 16 kHz.

    Raises:
        DataError: it is not there, or no audio.
        MissingExtraError: it needs the extra ``av``.
    """
    if isinstance(audio, AudioSource):
        return audio
    if not isinstance(audio, (str, os.PathLike)):
        return ArraySource(audio, sample_rate_hz or SAMPLE_RATE_HZ)
    name = os.fspath(audio)
    if name == "-":
        return DownloadedSource(sys.stdin.buffer, "standard input")
    if "://" in name:
        with _open_url(name) as stream:
            return DownloadedSource(stream, name)
    return FileSource(Path(name))


@contextlib.contextmanager
def _open_url(url: str) -> Iterator[Any]:
    try:
        if url.startswith(("http://", "https://", "file://")):
            import urllib.request

            with urllib.request.urlopen(url, timeout=60) as stream:
                yield stream
        else:
            import fsspec

            with fsspec.open(url, "rb") as stream:
                yield stream
    except DataError:
        raise
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"cannot be fetched: {error}") from error


def find_audio(folder: Path) -> list[Path]:
    """Return the audio files of a folder and of those below it, by name.

    Raises:
        DataError: there is none.
    """
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not found:
        raise DataError(f"the folder {folder} holds no audio; looked for {' '.join(sorted(EXTENSIONS))}")
    return found


class Resampler:
    """Blocks at any rate to int16 mono at 16 kHz; blocks may have any length.

    Args:
        rate_hz: samples per second of what comes in.
    """

    def __init__(self, rate_hz: int) -> None:
        _check_rate(rate_hz)
        self._stream = None if rate_hz == SAMPLE_RATE_HZ else soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, "float32")

    def push(self, block: npt.NDArray[Any]) -> Int16Array:
        """Return what ``block`` (``[N]`` or ``[N, channels]``, floats or int16) makes; the resampler lags behind."""
        if self._stream is None and block.dtype == np.int16 and block.ndim == 1:
            return block
        block = block.astype(np.float32) / 32768.0 if block.dtype == np.int16 else block.astype(np.float32, copy=False)
        mono = block.mean(axis=1, dtype=np.float32) if block.ndim == 2 else block
        if not np.isfinite(mono).all():
            raise DataError("unreadable audio: it holds values that are not numbers")
        return _to_int16(mono if self._stream is None else self._stream.resample_chunk(mono))

    def finish(self) -> Int16Array:
        """Return what was held back."""
        rest = np.zeros(0, np.float32)
        return _to_int16(rest if self._stream is None else self._stream.resample_chunk(rest, last=True))


def _to_int16(block: npt.NDArray[np.float32]) -> Int16Array:
    scaled: npt.NDArray[np.float32] = np.rint(np.clip(block, -1.0, 1.0) * 32768.0)
    return scaled.clip(max=32767.0).astype(np.int16)


def _as_array(samples: Any) -> npt.NDArray[Any]:
    array = samples.detach().cpu().numpy() if hasattr(samples, "detach") else np.asarray(samples)
    if array.ndim == 2 and array.shape[0] <= 16 < array.shape[1]:
        array = array.T  # channels first, as torchaudio gives them
    if array.ndim not in (1, 2) or not (array.dtype == np.int16 or np.issubdtype(array.dtype, np.floating)):
        raise DataError(
            f"audio must be [N] or [N, channels] of floats in -1..1 or int16, and is {array.dtype} {list(array.shape)}"
        )
    return array


def _check_rate(rate_hz: int) -> None:
    if not 0 < rate_hz <= _MAX_RATE_HZ:
        raise DataError(f"unreadable audio: a sample rate of {rate_hz} Hz")


@contextlib.contextmanager
def _sound(file: BinaryIO) -> Iterator[Any]:
    """Open a file in soundfile, and refuse one that cannot be what its header says."""
    _check_ogg(file)
    try:
        with soundfile.SoundFile(file) as sound:
            _check_rate(sound.samplerate)
            note = _SHORT_WAV.search(sound.extra_info)
            if note and int(note[2]) < int(note[1]) < _UNKNOWN_BYTES:
                raise DataError(f"unreadable audio: it holds {note[2]} of the {note[1]} bytes that its header says")
            if sound.frames <= 0:
                raise DataError("unreadable audio: it holds no samples")
            yield sound
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        what = str(error).rpartition(": ")[2].strip() or type(error).__name__
        raise DataError(f"unreadable audio: {what}") from error


def _sound_blocks(sound: Any) -> Blocks:
    """Return blocks ``[N, channels]``; a file that ends before its header says is an error."""
    left = sound.frames
    while left > 0:
        block = sound.read(min(left, BLOCK_SECONDS * sound.samplerate), dtype="float32", always_2d=True)
        if not len(block):
            at, missing = (sound.frames - left) / sound.samplerate, left / sound.samplerate
            raise DataError(f"unreadable audio: it breaks off at {at:.2f} s, {missing:.2f} s before its header says")
        left -= len(block)
        yield block


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
