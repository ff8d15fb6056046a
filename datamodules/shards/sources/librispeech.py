"""LibriSpeech trees: ``speaker/chapter/speaker-chapter.trans.txt`` beside ``speaker-chapter-number.flac``."""

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fastslm.audio.endings import AUDIO_ENDINGS
from fastslm.files import walk

from ..utterance import Audio, Noted, Refused, Utterance
from ._lines import composed, lines
from .options import SourceOptions

_SUFFIX = ".trans.txt"
_SPLIT = re.compile(r"(train|dev|test)(?![^\W\d_])", re.IGNORECASE)  # how the name of a split's folder begins


def detect(path: str) -> bool:
    """Say whether a folder has transcripts anywhere below it."""
    return any(_is_transcript(name) for below in walk(path) for name in below.names)


def _is_transcript(name: str) -> bool:
    return name.lower().endswith(_SUFFIX)


def read(path: str, options: SourceOptions) -> Iterator[Utterance | Refused | Noted]:
    """Yield the utterances of all chapters, in the order of speakers, chapters and transcripts.

    Where folders below are of several splits (``train-clean-100``, ``dev-clean``, ``test-other``), each is kept apart.
    """
    found = list(walk(path))
    transcripts = [Path(below.path, name) for below in found for name in below.names if _is_transcript(name)]
    chapters = itertools.groupby(sorted(transcripts, key=_by_number), lambda transcript: transcript.parent)
    splits = {transcript.parent: _split_of(transcript.parent.relative_to(path)) for transcript in transcripts}
    is_one = len(set(splits.values())) == 1
    for folder, of_folder in chapters:
        yield from _chapter(folder, list(of_folder), None if is_one else splits[folder])
    for folder, names, num_companions, unread in found:
        yield from (Refused(place, "?", "unreadable folder", reason) for place, reason in unread)
        if Path(folder) not in splits:
            yield from _without_transcript(Path(folder), names)
        if num_companions:
            yield Noted(folder, "?", "companion files", f"{num_companions} files of macOS (._*) are left out")


def _split_of(folder: Path) -> str | None:
    return next((match[1].lower() for match in map(_SPLIT.match, folder.parts) if match), None)


def _without_transcript(folder: Path, names: Sequence[str]) -> Iterator[Refused | Noted]:
    """Refuse the recordings of a chapter that has no transcript; note those of other folders."""
    audio = [name for name in names if os.path.splitext(name)[1].lower() in AUDIO_ENDINGS]
    start = f"{folder.parent.name}-{folder.name}-"
    for name in (name for name in audio if name.startswith(start)):
        yield Refused(str(folder / name), Path(name).stem, "missing text", f"no {start[:-1]}{_SUFFIX} lies beside it")
    others = sum(not name.startswith(start) for name in audio)
    if others:
        yield Noted(str(folder), "?", "files left out", f"{others} recordings in a folder without a {_SUFFIX}")


def _by_number(path: Path) -> tuple[list[tuple[int, str]], str]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.parent.parts], path.name


def _chapter(folder: Path, transcripts: Sequence[Path], split: str | None) -> Iterator[Utterance | Refused | Noted]:
    audio: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        is_audio = path.suffix.lower() in AUDIO_ENDINGS and not path.name.startswith("._")
        if is_audio and (first := audio.setdefault(composed(path.stem), path)) != path:
            yield Noted(str(path), path.stem, "recording in two formats", f"{first.name} is taken")
    described: dict[str, str] = {}
    for transcript in transcripts:
        yield from _lines_of(transcript, audio, described, split)
    names = ", ".join(transcript.name for transcript in transcripts[:3]) + ", ..." * (len(transcripts) > 3)
    for key, path in audio.items():
        if key not in described:
            yield Refused(str(path), key, "empty text", f"no line for it in {names}")


def _lines_of(
    transcript: Path, audio: Mapping[str, Path], described: dict[str, str], split: str | None
) -> Iterator[Utterance | Refused]:
    name = transcript.name[: -len(_SUFFIX)]
    for number, line in lines(str(transcript)):
        key, *rest = line.strip().split(None, 1)
        key, text = composed(key), "".join(rest)
        where = f"{transcript} line {number}"
        if key in described:
            yield Refused(where, key, "id stands twice", f"{described[key]} is taken")
            continue
        described[key] = f"{transcript.name} line {number}"
        found = audio.get(key)
        if found is None:
            yield Refused(where, key, "missing audio", f"no {key}.flac lies beside the transcript")
            continue
        speaker, _, chapter = name.partition("-")
        if not chapter:  # a tree that names its files otherwise still has the folders
            speaker, chapter = transcript.parent.parent.name, transcript.parent.name
        fields = {"text": text.strip(), "speaker": speaker, "chapter": chapter}
        yield Utterance(key, [Audio(str(found))], fields, where, f"{speaker}-{chapter}", split)
