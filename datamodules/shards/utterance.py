"""What a source yields: an utterance with references to its audio, or the reason why it cannot be used."""

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from fastslm.contracts import Task
from fastslm.errors import DataError
from fastslm.path.prompt import AUDIO, is_visible, messages_of, recordings_in
from fastslm.tasks import tasks

from ..reading.store import TarState

#: As programs write what is not there.
MISSING = frozenset(("nan", "NaN", "None", "null", "NULL", "NA", "<NA>", "N/A", "#N/A"))
#: The same as text, in any case, with what databases and spreadsheets write, STM files and Kaldi.
NO_TEXT = frozenset(
    ("\\n", "#name?", "#ref!", "#value!", "#null!", "#num!", "#div/0!", "ignore_time_segment_in_scoring", "!sil")
).union(name.casefold() for name in MISSING)
#: Marks that change no word: the dot that a small Turkish İ is left with, and how a sign is drawn.
_NO_LETTERS = frozenset(("\u0307", *map(chr, range(0xFE00, 0xFE10))))
#: Rounding in manifests, and what encoders add at the end of lossy files.
TOLERANCE_SECONDS = 0.2
#: A whole file may be longer than its source says by this: lengths are rounded down, or left out the end's silence.
LONGER_SECONDS = 1.0
#: In which lengths of unknown unit may be: seconds, milliseconds, usual sample rates, microseconds, nanoseconds.
_UNITS_PER_SECOND = (1, 1e3, 8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 1e6, 1e9)


@dataclass(slots=True)
class Audio:
    """Where a stretch of audio lies. Nothing is opened until a worker needs it.

    Attributes:
        path: of the file that holds it: audio itself, a tar, a parquet or an arrow file.
        start_seconds: where it begins; None means that the file is meant whole.
        seconds: how long it is; None means to the end. For a whole file, what the source says of its length.
        channel: the one channel that is meant, counted from 0; None mixes all.
        region: offset and size of an encoded recording inside a tar.
        cell: column, row group (-1 for arrow) and row of an encoded recording inside a table.
        root: where the path in a cell starts, in place of the table's folder.
        num_bytes: size of the encoded recording, once it is known.
        stated: what the source says of the length of the whole file, in a unit that it does not tell.
        whole_seconds: what the source says of the length of the file that a stretch is cut out of.
        container: size and time of change of the tar, table or audio file as it was found, for a new one has other
            audio at its places; None before it is looked at.
        crc32: what the index beside the tar says of the encoded recording; None where it does not know it.
        is_side: one channel is meant, and where ``channel`` is None, nothing says which of several.
        is_shared: another stretch is cut out of the same recording, which then is no stretch of a longer one itself.
    """

    path: str
    start_seconds: float | None = None
    seconds: float | None = None
    channel: int | None = None
    region: tuple[int, int] | None = None
    cell: tuple[str, int, int] | None = None
    root: str | None = None
    num_bytes: int = 0
    stated: float | None = None
    whole_seconds: float | None = None
    container: TarState | None = field(default=None, repr=False)
    crc32: int | None = field(default=None, repr=False)
    is_side: bool = field(default=False, repr=False)
    is_shared: bool = field(default=False, repr=False)

    @property
    def recording(self) -> tuple[object, ...]:
        """What tells its recording apart from others, however its path is spelt."""
        return real_path(self.path), self.region, self.cell

    def is_cut_already(self, total_seconds: float) -> bool:
        """Say whether a recording of ``total_seconds`` is the stretch alone, and its times are of where it was cut."""
        if self.start_seconds is None or self.seconds is None or self.is_shared:
            return False
        # What is cut already is as long as the recording, and a stretch up to the end of one ends where that does.
        off, past_end = abs(self.seconds - total_seconds), self.start_seconds + self.seconds - total_seconds
        return off <= TOLERANCE_SECONDS and off < past_end

    def doubts(self, total_seconds: float) -> list[str]:
        """Return a remark where a recording is taken whole though a stretch of one is meant."""
        if not self.is_cut_already(total_seconds):
            return []
        return [
            f"cut out already: it is to begin at {self.start_seconds:g} s, and the recording is as long as the stretch"
            f" ({total_seconds:.2f} s), so that all of it is taken"
        ]

    def stretch(self, total_seconds: float) -> tuple[float, float]:
        """Return begin and end in seconds in a recording that holds ``total_seconds``.

        Raises:
            DataError: it reaches past the end by more than rounding can explain, or the whole file is meant and is
            longer than the source says.
        """
        begin = self.start_seconds or 0.0
        end = total_seconds if self.seconds is None else begin + self.seconds
        if not begin >= 0.0:
            raise DataError(f"unusable fields: offset {begin:g} is negative or no number")
        if self.seconds is not None and not self.seconds > 0.0:  # a number that is none, too
            raise DataError(f"empty audio: a stretch of {self.seconds:g} s")
        if self.is_cut_already(total_seconds):
            return 0.0, total_seconds
        if begin >= total_seconds or end > total_seconds + TOLERANCE_SECONDS:
            what = "audio shorter than stated" if self.start_seconds is None else "offset past the end"
            hint = "; times are in seconds" if end >= 100 * total_seconds else ""
            raise DataError(f"{what}: {begin:g} to {end:g} s of a recording of {total_seconds:.2f} s{hint}")
        if self.start_seconds is not None:
            if self.whole_seconds is not None and abs(self.whole_seconds - total_seconds) > LONGER_SECONDS:
                raise DataError(
                    f"other length than stated: the recording is to have {self.whole_seconds:g} s, and the file has"
                    f" {total_seconds:.2f} s, so that the stretch may be another"
                )
            return begin, min(end, total_seconds)
        if not self.fits(total_seconds):
            raise DataError(
                f"other length than stated: the source says {end if self.stated is None else self.stated:g}, and"
                f" the file has {total_seconds:.2f} s, so that the text may be of another stretch; to take one, state"
                " its offset"
            )
        return 0.0, total_seconds

    def fits(self, total_seconds: float) -> bool:
        """Say whether a whole file of ``total_seconds`` is as long as its source says."""
        if self.stated is None:
            return self.seconds is None or abs(self.seconds - total_seconds) <= LONGER_SECONDS
        shorter = LONGER_SECONDS if self.stated == int(self.stated) else TOLERANCE_SECONDS  # whole seconds, rounded up
        if -shorter <= total_seconds - self.stated <= LONGER_SECONDS:
            return True
        return any(
            abs(self.stated / unit - total_seconds) <= min(TOLERANCE_SECONDS, total_seconds / 2)
            for unit in _UNITS_PER_SECOND
        )


@lru_cache(maxsize=4096)
def real_path(path: str) -> str:
    """Return the one path of a file that may be spelt in several ways, or be a link; that of another host as it is."""
    folder, name = os.path.split(path)
    full = os.path.join(_real_folder(folder), name)
    return os.path.realpath(full) if name in ("", ".", "..") or os.path.islink(full) else full


@lru_cache(maxsize=4096)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


@dataclass(slots=True)
class Utterance:
    """One sample-to-be.

    Attributes:
        key: the source's name for it; ``listing`` makes it unique and fit for a tar.
        audio: its recordings: one, none for text alone, several for a dialogue.
        fields: what its JSON will hold.
        where: where the source speaks of it, such as ``train.jsonl line 12``.
        group: chapter or long recording that it is a part of, in whose order utterances are joined.
        split: the source's own split that it belongs to, such as ``dev``; its shards are called like it.
        source: number of the path or pattern that it came by; speakers and groups of others are others.
    """

    key: str
    audio: list[Audio]
    fields: dict[str, Any]
    where: str
    group: str | None = None
    split: str | None = None
    source: int = field(default=0, repr=False)

    @property
    def speaker(self) -> str | None:
        """Who speaks, as text with composed letters (NFC); a number is the same with and without a fraction."""
        speaker = self.fields.get("speaker")
        name = "" if speaker is None else unicodedata.normalize("NFC", str(speaker)).strip()
        return None if name in ("", *MISSING) else re.sub(r"^(-?\d+)\.0$", r"\1", name)

    @property
    def seconds(self) -> float | None:
        """Length of all its audio, None where it is not known yet."""
        lengths = [audio.seconds for audio in self.audio]
        return None if None in lengths else sum(length for length in lengths if length is not None)


@dataclass(slots=True)
class Finding:
    """What is to be said of an utterance or a line of a source; counted by reason and listed, never silent."""

    where: str
    key: str
    reason: str
    detail: str = ""


@dataclass(slots=True)
class Noted(Finding):
    """What is doubtful or was changed; nothing is left out for it."""

    @staticmethod
    def of(utterance: "Utterance", remarks: Sequence[str]) -> "list[Noted]":
        """Return what remarks of the form ``reason: detail`` say of an utterance."""
        parts = [remark.partition(": ") for remark in remarks]
        return [Noted(utterance.where, utterance.key, reason, detail) for reason, _, detail in parts]


@dataclass(slots=True)
class Refused(Finding):
    """What cannot be used."""

    @staticmethod
    def of(utterance: Utterance, error: DataError) -> "Refused":
        """Return what an error says of an utterance; see ``at``."""
        return Refused.at(utterance.where, utterance.key, error)

    @staticmethod
    def at(where: str, key: object, error: DataError) -> "Refused":
        """Return what an error of the form ``reason: detail`` says of what stands somewhere."""
        reason, _, detail = str(error).partition(": ")
        return Refused(where, str(key), reason, detail)


def task_of(fields: dict[str, Any]) -> str | None:
    """Return the task of a sample's fields, None for free messages."""
    return str(fields.get("task") or "asr") if fields.get("messages") is None else None


def answer_field(fields: dict[str, Any]) -> str | None:
    """Return the field that answers the task, None for free messages and unknown tasks."""
    task = _known(fields)
    return task.answer_field if task else None


def is_timed(fields: dict[str, Any]) -> bool:
    """Say whether the answer follows the audio in time, so that parts of the one answer parts of the other."""
    task = _known(fields)
    return task is not None and task.timed


def _known(fields: dict[str, Any]) -> Task | None:
    return tasks().get(task_of(fields) or "")


def check_fields(fields: dict[str, Any], num_recordings: int) -> None:
    """Raise where fields make no sample.

    Raises:
        DataError: ``empty text`` where nothing answers the task, ``unusable fields`` for all else.
    """
    answer = answer_field(fields)
    value = fields.get(answer, "") if answer else None
    if answer and (value is None or (isinstance(value, str) and not is_visible(value))):
        words = [name for name, other in fields.items() if answer not in fields and isinstance(other, str) and other]
        hint = f"; another is taken for it by --column {answer}=NAME: {', '.join(words):.80}" if words else ""
        raise DataError(f"empty text: task {task_of(fields)!r} needs the field {answer!r}{hint}")
    try:
        messages = messages_of(fields)
    except DataError as error:
        raise DataError(f"unusable fields: {error}") from error
    marks = recordings_in(messages)
    if marks != num_recordings:
        raise DataError(
            f"unusable fields: the dialogue marks {marks} recordings with {AUDIO}, the sample has {num_recordings}"
        )


def letters_of(words: str) -> str:
    """Return a text without spaces, signs and case, as words are compared: its letters, their marks, and numbers.

    Many scripts write vowels as marks.
    """
    composed = unicodedata.normalize("NFC", words.casefold())
    return "".join(c for c in composed if c.isalnum() or (unicodedata.category(c)[0] == "M" and c not in _NO_LETTERS))


def stem(path: str) -> str:
    """Return a file's name without folders and suffix."""
    return os.path.splitext(os.path.basename(path))[0]
