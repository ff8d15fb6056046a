"""Kaldi data folders: ``wav.scp`` and ``text``; ``segments``, ``utt2spk``, ``utt2lang``, ``spk2gender`` where given."""

import os
import re
from collections.abc import Iterator

from fastslm.errors import DataError

from ..utterance import Audio, Refused, Utterance
from ._lines import lines, located
from .options import SourceOptions

_ARCHIVE = re.compile(r"\.ark:\d+$")


def detect(path: str) -> bool:
    """Say whether this is a folder with ``wav.scp``."""
    return os.path.isfile(os.path.join(path, "wav.scp"))


def read(path: str, options: SourceOptions) -> Iterator[Utterance | Refused]:
    """Yield the utterances of ``segments``, or of ``wav.scp`` where there is none, each with its ``text``.

    Raises:
        DataError: an entry of ``wav.scp`` is a command or lies in an archive.
    """
    recordings = _recordings(os.path.join(path, "wav.scp"), options.audio_root)
    texts, speakers, languages, genders = (
        dict(_pairs(os.path.join(path, name))) for name in ("text", "utt2spk", "utt2lang", "spk2gender")
    )
    if not texts:
        raise DataError(f"{path}: the Kaldi folder has no file 'text'.")
    channels = _channels(os.path.join(path, "reco2file_and_channel"))
    described = set()
    for where, key, recording, start, end in _spans(path, recordings):
        described.add(key)
        fields = {"text": texts.get(key, ""), "speaker": speakers.get(key), "language": languages.get(key)}
        fields["gender"] = genders.get(fields["speaker"] or "")
        fields["recording"] = recording if start is not None else None
        fields = {name: value for name, value in fields.items() if value is not None}
        if isinstance(start, DataError):
            yield Refused(where, key, "unreadable line", str(start))
        elif recording not in recordings:
            yield Refused(where, key, "missing audio", f"wav.scp has no recording {recording!r}")
        else:
            seconds = None if end is None or start is None or end < 0 else end - start  # -1: to the end
            audio = Audio(recordings[recording], start, seconds, channels.get(recording))
            yield Utterance(key, [audio], fields, where, recording if start is not None else None)
    for key in texts:
        if key not in described:
            yield Refused(f"{path}/text", key, "missing audio", "neither segments nor wav.scp knows the utterance")


def _recordings(path: str, audio_root: str | None) -> dict[str, str]:
    found = {}
    for number, line in lines(path):
        key, *rest = line.split(None, 1)
        target = rest[0].strip() if rest else ""
        if target.endswith("|") or target.startswith("|"):
            raise DataError(
                f"{path} line {number}: recording {key!r} is the command {target!r:.80}. Commands are not run: write"
                " its output to a file (for SPHERE files their own path is enough) and put that path here."
            )
        if _ARCHIVE.search(target):
            raise DataError(
                f"{path} line {number}: recording {key!r} lies in the archive {target!r}. Unpack it with Kaldi's"
                " wav-copy into files, and put their paths here."
            )
        if not target:
            raise DataError(f"{path} line {number}: recording {key!r} has no path.")
        found[key] = located(target, [audio_root or os.getcwd(), os.path.dirname(os.path.abspath(path))])
    return found


def _pairs(path: str) -> Iterator[tuple[str, str]]:
    if os.path.isfile(path):
        for _, line in lines(path):
            key, *rest = line.split(None, 1)
            yield key, rest[0].strip() if rest else ""


def _channels(path: str) -> dict[str, int]:
    names = {"A": 0, "B": 1, "1": 0, "2": 1}
    rows = (value.split() for value in (f"{key} {rest}" for key, rest in _pairs(path)))
    return {row[0]: names[row[2]] for row in rows if len(row) == 3 and row[2] in names}


#: Where it stands, utterance, recording, begin and end in seconds; an error in place of the begin.
_Span = tuple[str, str, str, float | DataError | None, float | None]


def _spans(path: str, recordings: dict[str, str]) -> Iterator[_Span]:
    segments = os.path.join(path, "segments")
    if not os.path.isfile(segments):
        yield from ((f"{path}/wav.scp", key, key, None, None) for key in recordings)
        return
    for number, line in lines(segments):
        where, parts = f"{segments} line {number}", line.split()
        try:
            key, recording, start, end = parts[0], parts[1], float(parts[2]), float(parts[3])
        except (IndexError, ValueError):
            yield where, parts[0], "", DataError("expected: utterance, recording, begin, end"), None
            continue
        yield where, key, recording, start, end
