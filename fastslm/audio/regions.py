"""A run of bytes inside something larger, as a file of its own; subclasses say how bytes are got."""

import io
import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastslm.errors import DataError, FastSLMError


class Region(io.RawIOBase):
    """Seekable and read-only; what cannot be read ends it, and ``error`` says why.

    Decoders written in C call back for bytes and cannot pass an exception on: see ``reading``.

    Args:
        size: bytes.

    Attributes:
        error: what went wrong, None when nothing did.
    """

    def __init__(self, size: int) -> None:
        self._size, self._position = size, 0
        self.error: Exception | None = None

    @abstractmethod
    def _read_at(self, position: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``position`` on, counted in the region."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, in bytes of the region."""
        if whence == os.SEEK_SET and offset < 0:
            raise ValueError(f"negative seek value {offset}")
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Return the place, in bytes of the region."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the region goes, and return how far."""
        wanted = min(len(buffer), max(0, self._size - self._position))
        try:
            data = self._read_at(self._position, wanted) if wanted and self.error is None else b""
        except (OSError, FastSLMError) as error:
            self.error, data = error, b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Return what is left, got at once; Python's own would ask for 8 KB after 8 KB, each a request to a server."""
        return b"".join(iter(lambda: self.read(max(0, self._size - self._position)), b""))


@contextmanager
def reading(file: Any) -> Iterator[None]:
    """Raise what kept a region from being read, in place of what its decoder made of the missing bytes.

    Raises:
        DataError: bytes could not be read.
        StoreError: their store cannot be reached.
    """
    region = getattr(file, "raw", file)
    try:
        yield
    finally:
        error = getattr(region, "error", None)
        if isinstance(error, FastSLMError):
            raise error
        if error is not None:
            raise DataError(f"unreadable shard: {getattr(error, 'strerror', None) or error}") from error
