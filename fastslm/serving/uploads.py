"""Recordings that clients send: on disk without a name, so that nothing is left whatever ends the request."""

import hashlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from fastslm.errors import FastSLMError
from fastslm.inference.audio import FileSource

from .problems import Problem

#: The forms of OpenAI's API have a dozen fields.
_MOST_FIELDS = 64
_LONGEST_NAME = 100


class Upload:
    """A recording and what tells its content from others.

    Args:
        file: open, from its beginning; its owner is this object.
        name: what the client calls it.

    Attributes:
        source: the recording.
        content: SHA-256 of its bytes.

    Raises:
        Problem: it is empty, or no audio.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        try:
            file.flush()
            self.content = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            self.source = FileSource(Path(f"/dev/fd/{file.fileno()}"), name)
        except FastSLMError as error:
            file.close()
            raise Problem(400, f"{name}: {error}", "file", "invalid_audio") from error
        except BaseException:
            file.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor of its file."""
        return self._file.fileno()

    def close(self) -> None:
        """Free its disk space."""
        self._file.close()


class _Form(MultiPartParser):
    """A form that must come to its end, and whose fields must be text."""

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], **limits: int) -> None:
        super().__init__(headers, self._until_end(stream), **limits)
        self._ended = False

    async def _until_end(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._ended:
            raise Problem(400, "The form was cut off: it ends before its last boundary. Send it again.")

    def on_end(self) -> None:
        self._ended = True

    def on_part_end(self) -> None:
        part = self._current_part
        if part.file is None:
            if part.field_name == "file":
                said = (
                    "file: it came as text, without a file name. Send it as a file, as curl does by -F file=@talk.wav."
                )
                raise Problem(400, said, "file")
            try:
                part.data.decode(self._charset)
            except (ValueError, LookupError) as error:
                name = part.field_name[:_LONGEST_NAME]
                said = f"{name}: is no text in {self._charset}. Send the form in UTF-8."
                raise Problem(400, said, name) from error
        super().on_part_end()


async def read_form(request: Request) -> tuple[FormData, UploadFile]:
    """Return the fields of a form, and the recording in it; the caller closes the form.

    Raises:
        Problem: there is no recording, or more than one, or the form is malformed or cut off.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise _no_recording()  # a form of another type would be read into memory
    try:
        form = await _Form(request.headers, request.stream(), max_files=1, max_fields=_MOST_FIELDS).parse()
    except MultiPartException as error:
        raise Problem(400, f"The form is malformed: {error.message}") from error
    except ValueError as error:  # a form may name any codec of Python as its charset
        raise Problem(400, "The form is malformed: its charset or its boundary cannot be used.") from error
    except OSError as error:  # a full disk, as a rule
        said = f"The recording cannot be stored here now: {error.strerror}. Come again later."
        raise Problem(503, said, "file", "no_space", 60) from error
    file = form.get("file")
    if isinstance(file, UploadFile):
        return form, file
    await form.close()
    raise _no_recording()


def _no_recording() -> Problem:
    said = "file: there is no recording. Send a form (multipart/form-data) with the file in the field 'file'."
    return Problem(400, said, "file")


async def uploaded(file: UploadFile) -> Upload:
    """Return what was uploaded as a recording.

    Raises:
        Problem: it is empty, or no audio.
    """
    spooled = file.file
    spooled.rollover()  # type: ignore[attr-defined]  # what is small is still in memory
    name = (file.filename or "audio").rpartition("/")[2][-200:] or "audio"
    return await run_in_threadpool(Upload, spooled, name)
