"""LibriSpeech trees: ``speaker/chapter/speaker-chapter.trans.txt`` beside ``speaker-chapter-number.flac``."""

from collections.abc import Iterator
from pathlib import Path

from fastslm.files import walk

from ..utterance import Audio, Noted, Refused, Utterance
from ._lines import composed, lines
from .options import SourceOptions

_SUFFIX = ".trans.txt"
_AUDIO = (".flac", ".wav", ".mp3", ".ogg", ".opus", ".m4a")


def detect(path: str) -> bool:
    """Say whether a folder has transcripts anywhere below it."""
    return any(name.endswith(_SUFFIX) for _, names, _ in walk(path) for name in names)


def read(path: str, options: SourceOptions) -> Iterator[Utterance | Refused | Noted]:
    """Yield the utterances of all chapters, in the order of speakers, chapters and transcripts."""
    found = list(walk(path))
    transcripts = [Path(folder, name) for folder, names, _ in found for name in names if name.endswith(_SUFFIX)]
    for transcript in sorted(transcripts, key=_by_number):
        yield from _chapter(transcript)
    for folder, _, num_companions in found:
        if num_companions:
            yield Noted(folder, "?", "companion files", f"{num_companions} files of macOS (._*) are left out")


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.parts]


def _chapter(transcript: Path) -> Iterator[Utterance | Refused | Noted]:
    name = transcript.name.removesuffix(_SUFFIX)
    audio: dict[str, Path] = {}
    for path in sorted(transcript.parent.iterdir()):
        is_audio = path.suffix.lower() in _AUDIO and not path.name.startswith("._")
        if is_audio and (first := audio.setdefault(composed(path.stem), path)) != path:
            yield Noted(str(path), path.stem, "recording in two formats", f"{first.name} is taken")
    described: dict[str, int] = {}
    for number, line in lines(str(transcript)):
        key, *rest = line.strip().split(None, 1)
        key, text = composed(key), "".join(rest)
        where = f"{transcript} line {number}"
        if (first_line := described.setdefault(key, number)) != number:
            yield Refused(where, key, "id stands twice", f"line {first_line} is taken")
            continue
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
