"""Audio of any length and format as int16 blocks, mono at 16 kHz: an eight-hour file is never in memory as a whole."""

import base64
import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from fastslm.audio.decoding import BLOCK_SECONDS, decoded, told_seconds
from fastslm.audio.endings import AUDIO_ENDINGS
from fastslm.audio.resampling import resampled
from fastslm.errors import DataError
from fastslm.files import open_file, walk
from fastslm.path.batch import Int16Array

from .samples import checked_rate, encoded_stream, is_encoded, samples_of, unpacked

#: What addresses may hold as it is: what is quoted already, and signs with a meaning.
_KEPT_IN_URLS = "%/:=&?~#+!$,;'@()*[]-._"
_SHOWN_OF_DATA = 60


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
        samples: see ``samples_of``.
        sample_rate_hz: samples per second; None means 16 kHz.

    Attributes:
        samples: what was given, and what its values mean.
    """

    def __init__(self, samples: Any, sample_rate_hz: Any = None) -> None:
        self.samples = samples_of(samples, sample_rate_hz)
        self.seconds = len(self.samples) / self.samples.rate_hz

    def blocks(self) -> Iterator[Int16Array]:
        """Return its samples in blocks."""
        samples, rate = self.samples, self.samples.rate_hz
        if not len(samples):
            raise DataError("the audio holds no samples")
        size = BLOCK_SECONDS * rate
        blocks = ((rate, samples.block(begin, begin + size)) for begin in range(0, len(samples), size))
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
        try:
            file = open_file(self.path)
        except OSError as error:
            piped = ": give - and pipe the recording into the command" * (error.errno == errno.EINVAL)
            raise DataError(f"cannot be opened: {error.strerror}{piped}") from error
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


def name_of(audio: Any) -> str:
    """Return what to call audio that may not have been opened yet, or cannot be."""
    if isinstance(audio, AudioSource):
        return audio.name
    try:
        name = os.fsdecode(audio) if isinstance(audio, (str, os.PathLike)) else "audio"
    except TypeError:
        return "audio"
    return f"{name[:_SHOWN_OF_DATA]}..." if name[:5].lower() == "data:" and len(name) > _SHOWN_OF_DATA else name


def open_audio(audio: Any, sample_rate_hz: Any = None) -> AudioSource:
    """Return audio in whatever form it comes.

    Args:
        audio: a path, a URL, ``-`` for standard input, an ``AudioSource``, the bytes of a file or an open one, samples
            (NumPy, torch or a list), a pair of samples and rate, what datasets or torchcodec give.
        sample_rate_hz: of samples that do not bring it; None means 16 kHz.

    Raises:
        DataError: it is not there, or no audio.
        MissingExtraError: it needs the extra ``av``.
    """
    if isinstance(audio, AudioSource):
        return audio
    if sample_rate_hz is not None:
        checked_rate(sample_rate_hz)
    if not isinstance(audio, (str, os.PathLike)):
        audio, sample_rate_hz = unpacked(audio, sample_rate_hz)
    if is_encoded(audio):
        return _read_whole(audio)
    if not isinstance(audio, (str, os.PathLike)):
        return ArraySource(audio, sample_rate_hz)
    try:
        name = os.fsdecode(audio)
    except TypeError as error:  # of an object that says that it is a path
        raise DataError(f"audio of type {type(audio).__name__} gives no path: {error}") from error
    if not name:
        raise DataError("the name of the recording is empty")
    if "\0" in name:
        raise DataError("no path holds a zero byte")
    if name == "-" and sys.stdin is None:
        raise DataError("standard input is closed: pipe a recording into the command, or give a file")
    if name == "-":
        return DownloadedSource(sys.stdin.buffer, "standard input")
    if "://" in name:
        with _open_url(name) as stream:
            return DownloadedSource(stream, name)
    return FileSource(Path(name))


def _read_whole(audio: Any) -> DownloadedSource:
    """Return a file in memory, or an open one, which stays where its owner has read it to."""
    try:
        place = audio.tell() if getattr(audio, "seekable", lambda: False)() else None
        try:
            return DownloadedSource(encoded_stream(audio), "audio")
        finally:
            if place is not None:
                audio.seek(place)
    except (OSError, ValueError) as error:  # a ValueError where it is closed
        raise DataError(f"an open file cannot be read: {getattr(error, 'strerror', None) or error}") from error


@contextlib.contextmanager
def _open_url(url: str) -> Iterator[Any]:
    try:
        scheme, _, rest = url.partition("://")
        url = f"{scheme.lower()}://{rest}"
        if scheme.lower() in ("http", "https", "file"):
            import urllib.request

            with urllib.request.urlopen(_request(url), timeout=60) as stream:
                yield stream
        else:
            import fsspec

            with fsspec.open(url, "rb") as stream:
                yield stream
    except DataError:
        raise
    except (OSError, ImportError, ValueError, HTTPException) as error:
        raise DataError(f"cannot be fetched: {error}") from error


def version_of(url: str) -> str:
    """Return what a server says the content at a URL is known by: its ETag, or else time and length; empty if nothing.

    Nothing is fetched but the header.
    """
    if not url.lower().startswith(("http://", "https://")):
        return ""
    import urllib.request

    try:
        request = _request(url)
        request.method = "HEAD"
        with urllib.request.urlopen(request, timeout=10) as answer:
            headers = answer.headers
    except (OSError, ValueError, HTTPException):  # a signed address may be for GET alone
        return ""
    if etag := headers.get("ETag"):
        return f"etag {etag}"
    time, length = headers.get("Last-Modified"), headers.get("Content-Length")
    return f"modified {time}, {length} bytes" if time and length else ""


def _request(url: str) -> Any:
    """Return the request for a URL, in which letters may stand as a browser shows them.

    A user and password in it go into a header, for urllib takes them for a port.
    """
    import urllib.request

    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    path, query = (quote(part, safe=_KEPT_IN_URLS) for part in (parts.path, parts.query))
    if not host.isascii():
        host = host.encode("idna").decode()
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host, path=path, query=query, fragment="")))
    if at:
        code = base64.b64encode(unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {code}")
    return request


def find_audio(folder: Path) -> list[Path]:
    """Return the audio files of a folder and of those below it, by name; see ``fastslm.files.walk``.

    Raises:
        DataError: there is none.
    """
    below = list(walk(folder))
    found = sorted(path for part in below for name in part.names if (path := Path(part.path, name)).is_file())
    found = [path for path in found if path.suffix.lower() in AUDIO_ENDINGS]
    for place, reason in (item for part in below for item in part.unread):
        print(f"{place}: left out, it cannot be read ({reason}).", file=sys.stderr)
    if num_companions := sum(part.num_companions for part in below):
        print(f"{num_companions} files that macOS added (._*) are left out.", file=sys.stderr)
    if not found:
        raise DataError(f"the folder {folder} holds no audio; looked for {' '.join(sorted(AUDIO_ENDINGS))}")
    return found
