"""Lengths of all recordings before the first is read: from the source, or from headers; long ones are split here."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fastslm.errors import DataError

from ..reading.store import TarState
from .opening import info_of, state_of
from .processes import Progress, Report, run_in_order
from .split import split
from .utterance import Audio, Refused, Utterance

_CHUNK = 64
_FEWEST_BYTES = 50  # a second of any codec for speech takes more; what is silent may take less, and is looked at


@dataclass
class Survey:
    """Utterances of known length, those that were refused, and a fingerprint of the files' sizes and times."""

    utterances: list[Utterance]
    refused: list[Refused]
    fingerprint: str


def survey(utterances: Sequence[Utterance], split_seconds: float | None, num_workers: int) -> Survey:
    """Look at the recordings of all utterances, and split those above ``split_seconds``; None keeps all whole.

    The result does not depend on the number of processes.
    """
    chunks = [utterances[i : i + _CHUNK] for i in range(0, len(utterances), _CHUNK)]
    progress = Progress("Looking at audio files", len(utterances), "utterances")
    digest = hashlib.sha256()
    found: list[Utterance | Refused] = []
    look = partial(_look, split_seconds=split_seconds)
    for of_chunk, states in run_in_order(look, chunks, num_workers, progress):
        found += of_chunk
        digest.update(repr(states).encode())
    kept = [item for item in found if isinstance(item, Utterance)]
    refused = [item for item in found if isinstance(item, Refused)]
    return Survey(kept, refused, digest.hexdigest()[:16])


def _look(
    chunk: Sequence[Utterance], report: Report, split_seconds: float | None
) -> tuple[list[Utterance | Refused], list[tuple[int, int]]]:
    """Return what became of some utterances, and size and time of the files that hold their recordings."""
    found: list[Utterance | Refused] = []
    states = []
    for utterance in chunk:
        for audio in utterance.audio:
            state = state_of(audio)
            states.append(state)
            if audio.container is None and any(state):
                audio.container = TarState(*state)
        try:
            for audio in utterance.audio:
                _measure(audio)
            found += [utterance] if split_seconds is None else split(utterance, split_seconds)
        except DataError as error:
            found.append(Refused.of(utterance, error))
        report(1)
    return found, states


def _measure(audio: Audio) -> None:
    """Complete what a reference says of its length.

    Raises:
        DataError: the file is missing or cannot be read, or the stretch lies past its end.
    """
    size, _ = state_of(audio)
    if audio.seconds is not None and size and _may_hold(audio.region[1] if audio.region else size, audio):
        if audio.start_seconds is None and audio.region is None and audio.cell is None:
            audio.num_bytes = size
        return  # what the source says is believed until the audio is read
    info, num_bytes = info_of(audio)
    begin, end = audio.stretch(info.seconds)
    audio.seconds = end - begin
    audio.num_bytes = num_bytes if audio.start_seconds is None else 0


def _may_hold(num_bytes: int, audio: Audio) -> bool:
    """Say whether so many bytes can hold what the source says: numbers of another unit are as large as one likes."""
    end = (audio.start_seconds or 0.0) + (audio.seconds or 0.0)
    return end * _FEWEST_BYTES < num_bytes
