"""LibriSpeech trees: ``speaker/chapter/speaker-chapter.trans.txt`` beside ``speaker-chapter-number.flac``."""

import os
from collections.abc import Iterator
from pathlib import Path

from ..utterance import Audio, Refused, Utterance
from ._lines import lines
from .options import SourceOptions

_SUFFIX = ".trans.txt"
_AUDIO = (".flac", ".wav", ".mp3", ".ogg", ".opus", ".m4a")


def detect(path: str) -> bool:
    """Say whether a folder has transcripts anywhere below it."""
    return any(name.endswith(_SUFFIX) for _, _, names in os.walk(path) for name in names)


def read(path: str, options: SourceOptions) -> Iterator[Utterance | Refused]:
    """Yield the utterances of all chapters, in the order of speakers, chapters and transcripts."""
    transcripts = sorted(Path(path).rglob(f"*{_SUFFIX}"), key=_by_number)
    for transcript in transcripts:
        yield from _chapter(transcript)


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.parts]


def _chapter(transcript: Path) -> Iterator[Utterance | Refused]:
    name = transcript.name.removesuffix(_SUFFIX)
    audio = {p.stem: p for p in sorted(transcript.parent.iterdir()) if p.suffix.lower() in _AUDIO}
    for number, line in lines(str(transcript)):
        key, _, text = line.strip().partition(" ")
        where = f"{transcript} line {number}"
        found = audio.pop(key, None)
        if found is None:
            yield Refused(where, key, "missing audio", f"no {key}.flac lies beside the transcript")
            continue
        speaker, _, chapter = name.partition("-")
        if not chapter:  # a tree that names its files otherwise still has the folders
            speaker, chapter = transcript.parent.parent.name, transcript.parent.name
        fields = {"text": text.strip(), "speaker": speaker, "chapter": chapter}
        yield Utterance(key, [Audio(str(found))], fields, where, f"{speaker}-{chapter}")
    for key, path in audio.items():
        yield Refused(str(path), key, "empty text", f"{transcript.name} has no line for it")
