"""Standard output and standard error as commands have them: without secrets, in any encoding, full or closed."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from fastslm.errors import ConfigError, FastSLMError
from fastslm.redaction import redacted


class OutputError(FastSLMError):
    """What a command prints has nowhere to go."""


def needs_output(way_out: str = "") -> None:
    """Refuse to work for an answer that cannot be printed.

    Args:
        way_out: where else the answer could go.

    Raises:
        ConfigError: standard output is closed.
    """
    if sys.stdout is None:
        raise ConfigError(f"standard output is closed, and the answer would be lost.{way_out}")


def give_up_output() -> None:
    """Let what still waits to be printed go nowhere, or the interpreter's last flush fails, too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"what is printed cannot be written: {error.strerror}.") from error


class PrintedStream:
    """A stream for people: what is printed to it goes on without secrets, whichever library prints it.

    Characters that its encoding lacks, and bytes in names of files that are no text, are written as escapes.

    Args:
        stream: where it goes on to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text.

        Raises:
            OutputError: the disk is full, or the like.
        """
        shown = redacted(text)
        with _told():
            try:
                self._stream.write(shown)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "utf-8"
                self._stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OutputError: the disk is full, or the like.
        """
        with _told():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
