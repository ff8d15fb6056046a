"""Audio of any length and format as int16 blocks, mono at 16 kHz: an eight-hour file is never in memory as a whole."""

import base64
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np
import numpy.typing as npt

from fastslm.audio.decoding import BLOCK_SECONDS, decoded, told_seconds
from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.audio.resampling import check_rate, resampled
from fastslm.errors import DataError
from fastslm.path.batch import Int16Array

#: What a folder is searched for.
EXTENSIONS = frozenset(
    {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".aifc", ".au", ".caf", ".w64"}  # soundfile
    | {".m4a", ".aac", ".mp4", ".mkv", ".mov", ".webm", ".wma", ".amr", ".avi"}  # PyAV
)


class AudioSource:
    """Audio that can be read from the start as often as needed.

    Attributes:
        name: what to call it.
        seconds: how long it is; None where only reading tells.
        remarks: what is doubtful about it, each of the form ``reason: detail``; known once its blocks were read.
    """

    name: str = "audio"
    seconds: float | None = None
    remarks: Sequence[str] = ()

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
        check_rate(sample_rate_hz)
        self.name, self.seconds = name, len(self.samples) / sample_rate_hz

    def blocks(self) -> Iterator[Int16Array]:
        """Return its samples in blocks."""
        if not len(self.samples):
            raise DataError("the audio holds no samples")
        size = BLOCK_SECONDS * self._rate_hz
        blocks = ((self._rate_hz, self.samples[begin : begin + size]) for begin in range(0, len(self.samples), size))
        remarks: list[str] = []
        yield from resampled(blocks, remarks=remarks)
        self.remarks = remarks


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
            self.seconds = told_seconds(file)

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
        remarks: list[str] = []
        with self._open() as file:
            yield from decoded(file, remarks=remarks)
        self.remarks = remarks


class DownloadedSource(FileSource):
    """What came from elsewhere, in a temporary file without a name, which goes with this object or process.

    Args:
        stream: the bytes, read to their end.
        name: what to call it.
    """

    def __init__(self, stream: Any, name: str) -> None:
        self._file = tempfile.TemporaryFile(prefix="fastslm-")  # noqa: SIM115 -- it has no name that a kill could leave
        shutil.copyfileobj(stream, self._file, 1 << 20)
        self._file.flush()
        super().__init__(Path(f"/dev/fd/{self._file.fileno()}"), name)


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
    if name == "-" and sys.stdin is None:
        raise DataError("standard input is closed: pipe a recording into the command, or give a file")
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

            with urllib.request.urlopen(_request(url), timeout=60) as stream:
                yield stream
        else:
            import fsspec

            with fsspec.open(url, "rb") as stream:
                yield stream
    except DataError:
        raise
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"cannot be fetched: {error}") from error


def _request(url: str) -> Any:
    """Return the request for a URL; a user and password in it go into a header, for urllib takes them for a port."""
    import urllib.request

    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)))
    if at:
        code = base64.b64encode(unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {code}")
    return request


def find_audio(folder: Path) -> list[Path]:
    """Return the audio files of a folder and of those below it, by name.

    Raises:
        DataError: there is none.
    """
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not found:
        raise DataError(f"the folder {folder} holds no audio; looked for {' '.join(sorted(EXTENSIONS))}")
    return found


def _as_array(samples: Any) -> npt.NDArray[Any]:
    array = samples.detach().cpu().numpy() if hasattr(samples, "detach") else np.asarray(samples)
    if array.ndim == 2 and array.shape[0] <= 16 < array.shape[1]:
        array = array.T  # channels first, as torchaudio gives them
    if array.ndim not in (1, 2) or not (array.dtype == np.int16 or np.issubdtype(array.dtype, np.floating)):
        raise DataError(
            f"audio must be [N] or [N, channels] of floats in -1..1 or int16, and is {array.dtype} {list(array.shape)}"
        )
    return array
