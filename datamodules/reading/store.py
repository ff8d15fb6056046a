"""Bytes of shards, wherever they lie: local files by pread, https://, s3:// and gs:// by byte ranges through fsspec."""

import errno
import io
import itertools
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar, cast

from fastslm.audio.regions import Region, reading
from fastslm.errors import DataError, FastSLMError, MissingExtraError, StoreError
from fastslm.redaction import redacted

from .audio import crc32_of_file, open_region

_MAX_OPEN_SHARDS = 64  # of a process; systems often allow it 1024 files
_ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 8.0
_PATIENCE_SECONDS = 120.0  # with a store that was there before; a signal to save waits as long
_REMOTE_BUFFER_BYTES = 4 << 20
_MAX_MEMORY_BYTES = 8 << 20
_MOST_INDEX_BYTES = 1 << 28  # millions of samples; in place of an index a server may give anything, even the tar
_TIMEOUT_SECONDS = 60
#: In queries, what says who may read and until when, and not what: of S3, CloudFront, Google and Azure.
_SIGNING = re.compile(
    r"x-(amz|goog)-.*|signature|expires|policy|key-pair-id|(aws)?accesskeyid|googleaccessid|token"
    r"|sig|s[ptevr]|ss|srt|spr|sip|sk(oid|tid|t|e|s|v)"
)
#: One of them is in each query that is signed; without it a field of those names may say what is meant.
_SIGNATURES = ("sig", "signature", "x-amz-signature", "x-goog-signature")
_EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}

T = TypeVar("T")


@dataclass(frozen=True)
class TarState:
    """What tells a tar from one that was modified: size, and time of change or the store's tag for its content."""

    size: int
    mtime_ns: int | None = None
    etag: str | None = None


def is_remote(shard: str) -> bool:
    """Say whether a shard is a URL rather than a path."""
    return "://" in shard


def unsigned(url: str) -> str:
    """Return a URL without what signs it, which is another each time that an object's owner gives out its address."""
    place, _, query = url.partition("?")
    fields = [(field.partition("=")[0].lower(), field) for field in query.split("&")]
    if not is_remote(url) or dict(fields).keys().isdisjoint(_SIGNATURES):
        return url
    kept = "&".join(field for name, field in fields if not _SIGNING.fullmatch(name))
    return f"{place}?{kept}" if kept else place


def tar_state(path: str | int) -> TarState:
    """Return size and time of a local tar, or of another file, by its path or an open descriptor.

    Raises:
        OSError: there is none, or it is no file.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, and a device never ends
        raise OSError(errno.EINVAL, "it is no file, but a folder, a pipe or a device", path)
    return TarState(status.st_size, status.st_mtime_ns)


def filesystem(url: str) -> Any:
    """Return fsspec's file system for a URL.

    Raises:
        MissingExtraError: the package that speaks the URL's protocol is not installed.
        DataError: the protocol is unknown.
    """
    import fsspec

    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, connect=_TIMEOUT_SECONDS, sock_read=_TIMEOUT_SECONDS)
            options["client_kwargs"] = {"timeout": timeout}
        return fsspec.filesystem(protocol, **options)
    except ImportError as error:
        package = _EXTRAS.get(protocol, f"fsspec[{protocol}]")
        raise MissingExtraError(package, extra="remote", purpose=f"shards at {protocol}://") from error
    except ValueError as error:
        raise DataError(f"shard {url}: the protocol {protocol!r} is unknown to fsspec.") from error


def retried(action: Callable[[], T], shard: str, patience: float = 0.0) -> T:
    """Return what ``action`` gives, tried a few times with growing pauses; a file that is missing or forbidden is not.

    Args:
        action: asks the store.
        shard: for messages.
        patience: seconds in which a store that cannot be reached, or is too busy, is asked again.

    Raises:
        DataError: it failed every time.
        StoreError: the store cannot be reached, or is too busy, for longer than ``patience``.
    """
    begin = time.monotonic()
    for attempt in itertools.count(1):
        try:
            return action()
        except FastSLMError:  # what people can mend, time does not
            raise
        except Exception as failure:  # each store's client has exceptions of its own
            error = _reason(failure)
            if isinstance(error, FileNotFoundError):
                raise DataError(f"vanished shard: {shard} is not there") from error
            what = " ".join(str(error).split()) or type(error).__name__
            waited = time.monotonic() - begin
            is_last, is_outage = attempt >= _ATTEMPTS or _is_forbidden(error), patience > 0 and _is_outage(error)
            if is_last and not is_outage:
                tried = f" ({attempt} attempts)" if attempt > 1 else ""
                raise DataError(f"unreadable shard: {shard}: {what}{tried}") from error
            if is_last and waited > patience:
                raise StoreError(
                    f"shard {shard}: its store has given nothing for {waited:.0f} s: {what}. Give the same command"
                    " again when it does; fit continues with --ckpt_path last."
                ) from error
            if attempt == _ATTEMPTS:
                told = f"shard {shard}: {what}; its store is waited for, up to {patience:g} s."
                print(redacted(told), file=sys.stderr)  # a worker's output goes past the command's
            time.sleep(min(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), _LONGEST_PAUSE_SECONDS))
    raise AssertionError


def _reason(error: BaseException) -> BaseException:
    """Return what is wrong; HTTP's client says of any file that it cannot look up that it is not there."""
    cause = error.__cause__
    hidden = isinstance(error, FileNotFoundError) and (isinstance(cause, OSError) or hasattr(cause, "status"))
    return cause if cause is not None and hidden else error


def _is_forbidden(error: BaseException | None) -> bool:
    """Say whether a store refuses a file, as the clients of S3, HTTP and Google's store tell it."""
    status = getattr(error, "status", None)
    return isinstance(error, PermissionError) or status in (401, 403) or str(error).startswith("Forbidden")


def _is_outage(error: BaseException) -> bool:
    """Say whether a store cannot be reached or is too busy, rather than fails at this one file."""
    is_busy = getattr(error, "status", None) in (429, 502, 503, 504) or getattr(error, "errno", None) == errno.EBUSY
    beneath = error.__cause__ or error.__context__  # what the system says of a connection
    return is_busy or isinstance(error, ConnectionError | TimeoutError) or isinstance(beneath, OSError)


class RemoteRegion(Region):
    """A run of bytes inside a remote file, as a file of its own."""

    def __init__(self, system: Any, url: str, offset: int, size: int) -> None:
        super().__init__(size)
        self._system, self._url, self._offset = system, url, offset

    def _read_at(self, position: int, count: int) -> bytes:
        begin = self._offset + position

        def fetch() -> bytes:
            data = self._system.cat_file(self._url, start=begin, end=begin + count)
            if len(data) > count:
                raise DataError(
                    f"unreadable shard: the server of {self._url} knows no byte ranges, by which samples are read. Copy"
                    f" the shard to disk, or stream it for training: 'pipe:curl -sf {self._url}'"
                )
            if len(data) < count:
                raise OSError(f"{len(data)} of {count} bytes came")
            return bytes(data)

        return retried(fetch, self._url, _PATIENCE_SECONDS)


class Store:
    """Opens regions of shards; keeps files open, and survives a fork and pickling."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._systems: dict[str, Any] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"_descriptors": {}, "_systems": {}, "_process": -1}  # they belong to the process that opened them

    def open(self, shard: str, offset: int, size: int) -> BinaryIO:
        """Return a region of a shard as a file.

        Raises:
            DataError: the shard cannot be opened.
        """
        if is_remote(shard):
            return io.BufferedReader(RemoteRegion(self._system(shard), shard, offset, size), _REMOTE_BUFFER_BYTES)
        return open_region(self._descriptor(shard), offset, size)

    def fetch(self, shard: str, offset: int, size: int) -> tuple[BinaryIO, int]:
        """Return a region as a file that will be read whole, and the CRC-32 of its bytes.

        A small region is read once, into memory; of a large one a local file is read twice, and a remote one goes to
        a temporary file.

        Raises:
            DataError: it cannot be read.
            StoreError: its store cannot be reached.
        """
        if size <= _MAX_MEMORY_BYTES:
            data = self.read(shard, offset, size)
            return io.BytesIO(data), zlib.crc32(data)
        file = self.open(shard, offset, size)
        if not is_remote(shard):
            return file, crc32_of_file(file)
        copy = cast(BinaryIO, tempfile.SpooledTemporaryFile(_MAX_MEMORY_BYTES))  # noqa: SIM115 -- the caller reads it
        with reading(file):
            shutil.copyfileobj(file, copy, _REMOTE_BUFFER_BYTES)
        return copy, crc32_of_file(copy)

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """Return a region of a shard.

        Raises:
            DataError: the shard cannot be read, or ends before the region does.
            StoreError: its store cannot be reached.
        """
        if is_remote(shard):
            file = self.open(shard, offset, size)
            with reading(file):
                data = file.read()
        else:
            try:
                data = os.pread(self._descriptor(shard), size, offset)
            except OSError as error:
                raise DataError(f"unreadable shard: {error.strerror}") from error
        if len(data) != size:
            raise DataError(f"truncated shard: it ends {size - len(data)} bytes before the sample does")
        return data

    def state(self, shard: str) -> TarState:
        """Return size and time of a shard.

        Raises:
            DataError: it is not there.
        """
        if not is_remote(shard):
            try:
                return tar_state(shard)
            except OSError as error:
                raise DataError(f"{error.strerror}") from error
        info = retried(lambda: self._system(shard).info(shard), shard)
        tag = next((str(info[name]) for name in ("ETag", "etag", "md5Hash", "LastModified") if info.get(name)), None)
        if info.get("size") is None:
            raise DataError("the server does not tell its size, so that it cannot be read by offset")
        return TarState(int(info["size"]), etag=tag)

    def read_index(self, path: str) -> bytes | None:
        """Return the bytes of an index, local or remote; None where there is none.

        Raises:
            DataError: the store fails.
        """
        try:
            if is_remote(path):
                data: bytes = retried(lambda: self._system(path).cat_file(path, start=0, end=_MOST_INDEX_BYTES), path)
                return data
            with open(path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except DataError as error:
            # S3 forbids what is not there to readers who may not list the bucket.
            if isinstance(error.__cause__, FileNotFoundError) or _is_forbidden(error.__cause__):
                return None
            raise

    @contextmanager
    def local(self, shard: str) -> Iterator[str]:
        """Yield a path at which the whole shard lies, a temporary copy of a remote one.

        Raises:
            DataError: it cannot be fetched, or there is no room for it.
            StoreError: its store cannot be reached.
        """
        if not is_remote(shard):
            yield shard
            return
        size = self.state(shard).size
        with tempfile.TemporaryDirectory(prefix="fastslm-shard-") as folder:
            path = os.path.join(folder, "shard.tar")
            try:
                with open(path, "wb") as file, self.open(shard, 0, size) as source, reading(source):
                    shutil.copyfileobj(source, file, _REMOTE_BUFFER_BYTES)
            except OSError as error:
                raise DataError(f"shard {shard}: no copy of {size} bytes in {folder}: {error.strerror}.") from error
            yield path

    def _system(self, url: str) -> Any:
        if self._process != os.getpid():
            self._systems, self._process = {}, os.getpid()
        protocol = url.partition("://")[0]
        if protocol not in self._systems:
            self._systems[protocol] = filesystem(url)
        return self._systems[protocol]

    def _descriptor(self, shard: str) -> int:
        descriptor = self._descriptors.pop(shard, None)
        if descriptor is None:
            if len(self._descriptors) == _MAX_OPEN_SHARDS:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            try:
                descriptor = os.open(shard, os.O_RDONLY)
            except OSError as error:
                what = "vanished" if isinstance(error, FileNotFoundError) else "unreadable"
                raise DataError(f"{what} shard: {error.strerror}") from error
        self._descriptors[shard] = descriptor  # last: the first in the dictionary is the one unused for longest
        return descriptor
