"""What the transcripts of a folder were made from and with: a line for each, so that no other text passes for one."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fastslm.errors import DataError
from fastslm.files import sha256_of
from fastslm.inference.audio import version_of

#: In the output folder: one JSON line for each transcript that was written.
NOTES = ".fastslm-transcribe.jsonl"
#: What texts were made with before a setting was there, where it changes them.
_MEANT = {"letters": False}


@dataclass(frozen=True)
class Recording:
    """A recording as it was when it was transcribed.

    Attributes:
        path: where it lay; of a URL, what a secret cannot be in.
        size: bytes; 0 where it is no file.
        times_ns: when its content and its entry in the folder were changed; empty where it is no file.
        sha256: of its bytes; of a URL, of the address.
        version: of a URL, what its server says the content is known by; empty where it says nothing.
    """

    path: str
    size: int
    times_ns: tuple[int, ...]
    sha256: str
    version: str = ""

    @classmethod
    def of(cls, audio: str) -> "Recording":
        """Return it as it is now; a file is read to its end.

        Raises:
            DataError: the file cannot be read.
        """
        if audio == "-":
            return cls("standard input", 0, (), "")
        if "://" in audio:
            address = audio.partition("?")[0].partition("#")[0]
            scheme, _, rest = address.partition("://")
            host, slash, path = rest.partition("/")
            shown = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
            return cls(shown, 0, (), _sha256_of_address(audio), version_of(audio))
        try:
            before = os.stat(audio)
            return cls(os.path.realpath(audio), before.st_size, _times(before), sha256_of(Path(audio)))
        except OSError as error:
            raise DataError(f"{audio}: cannot be read: {error.strerror}") from error

    def is_now(self, audio: str) -> bool:
        """Whether a recording has the content that this one had; it is read only where path, size or time differ.

        Raises:
            DataError: the file cannot be read.
        """
        if audio == "-":
            return False  # what comes through a pipe may be anything
        if "://" in audio:
            return self._is_still_at(audio)
        try:
            now = os.stat(audio)
        except OSError as error:
            raise DataError(f"{audio}: cannot be read: {error.strerror}") from error
        if (self.path, self.size, self.times_ns) == (os.path.realpath(audio), now.st_size, _times(now)):
            return True
        return self.size == now.st_size and self.sha256 == Recording.of(audio).sha256

    def _is_still_at(self, url: str) -> bool:
        now = Recording.of(url)
        if not (self.version and now.version):  # a server that says nothing of it
            return self.sha256 == now.sha256
        signed_anew = self.path == now.path and self.version.startswith("etag ")  # the same file by another address
        return self.version == now.version and (self.sha256 == now.sha256 or signed_anew)

    def lies_at(self, audio: str) -> bool:
        """Whether it is what lay at this path, whatever it was."""
        if "://" in audio:
            return self.sha256 == _sha256_of_address(audio)
        return audio != "-" and self.path == os.path.realpath(audio)


@dataclass(frozen=True)
class Note:
    """One transcript.

    Attributes:
        output: its file, from the folder on.
        text_sha256: of its bytes.
        recording: what it was made from.
        settings: what it was made with.
    """

    output: str
    text_sha256: str
    recording: Recording
    settings: dict[str, Any]

    def changed(self, settings: dict[str, Any]) -> list[str]:
        """Return the names of settings that have another value now."""
        return changed_settings(self.settings, settings)


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of settings that have another value now; what was noted before there was one may lack it.

    So may a setting of several values lack one of them: marks of base models once had none of the tokenizer.
    """
    known = {**now, **_MEANT, **before}
    return [
        name
        for name, value in now.items()
        if ({**value, **known[name]} if isinstance(value, Mapping) else known[name]) != value
    ]


#: What is at the place of a transcript: ``nothing``; one that is ``finished``; one of the recording before it was
#: ``edited``, or made with ``other settings``; a text that somebody ``else`` wrote, or that of ``another`` recording.
State = Literal["nothing", "finished", "edited", "other settings", "else", "another"]


class Notes:
    """The notes of an output folder. Any number of processes may write there at once.

    Args:
        folder: it; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._notes: dict[tuple[str, str], Note] = {}
        path = folder / NOTES
        for line in path.read_bytes().splitlines() if path.is_file() else []:
            try:
                row = json.loads(line)
                recording = Recording(**{**row["recording"], "times_ns": tuple(row["recording"]["times_ns"])})
                note = Note(row["output"], row["text_sha256"], recording, dict(row["settings"]))
                self._notes[note.output, note.text_sha256] = note
            except (ValueError, KeyError, TypeError, RecursionError):  # an empty line, or a damaged one
                continue

    def look(self, output: Path, audio: str, settings: dict[str, Any]) -> tuple[State, Note | None]:
        """Return what is at the place of a transcript, and its note.

        Args:
            output: the file.
            audio: what is to be transcribed.
            settings: what with.

        Raises:
            DataError: the recording cannot be read.
        """
        if not os.path.lexists(output):
            return "nothing", None
        note = self._notes.get((self._name(output), sha256_of(output))) if output.is_file() else None
        if note is None:
            return "else", None
        if note.recording.is_now(audio):
            return ("other settings" if note.changed(settings) else "finished"), note
        return ("edited" if note.recording.lies_at(audio) else "another"), note

    def add(self, output: Path, text: str, recording: Recording, settings: dict[str, Any]) -> None:
        """Note a transcript that is about to be written; a kill in between leaves a note that means nothing."""
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        line = json.dumps(asdict(Note(self._name(output), digest, recording, settings)))
        with open(self.folder / NOTES, "ab") as file:  # one write at the end, whoever else writes there
            file.write(f"\n{line}\n".encode())  # not behind a line that a full disk cut

    def _name(self, output: Path) -> str:
        return os.path.relpath(output, self.folder)


def _times(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_mtime_ns, stat.st_ctime_ns  # a tool that sets the first cannot set the second


def _sha256_of_address(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()
