"""Kaldi data folders: ``wav.scp`` and ``text``; ``segments``, speakers, languages and lengths where given."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator

from fastslm.errors import DataError

from .. import times
from ..utterance import Audio, Noted, Refused, Utterance
from ._lines import composed, lines, located, some
from .options import SourceOptions

_ARCHIVE = re.compile(r"\.ark:\d+$")


def detect(path: str) -> bool:
    """Say whether this is a folder with ``wav.scp``."""
    return os.path.isfile(os.path.join(path, "wav.scp"))


def read(path: str, options: SourceOptions) -> Iterator[Utterance | Refused | Noted]:
    """Yield the utterances of ``segments``, or of ``wav.scp`` where there is none, each with its ``text``.

    An id that stands in lines that differ is refused, for nobody knows which of them is meant; of lengths the first
    counts.

    Raises:
        DataError: an entry of ``wav.scp`` is a command or lies in an archive.
    """
    recordings = _recordings(os.path.join(path, "wav.scp"), options.audio_root)
    names = ("text", "utt2spk", "utt2lang", "spk2gender")
    tables = [_Table(os.path.join(path, name)) for name in names]
    texts, speakers, languages, genders = tables
    lengths = [_Table(os.path.join(path, name)) for name in ("utt2dur", "reco2dur", "utt2num_samples")]
    if not texts:
        raise DataError(f"{path}: the Kaldi folder has no file 'text'.")
    channels = _channels(os.path.join(path, "reco2file_and_channel"))
    num_of_file = Counter(recordings.values())
    spans = _Table(os.path.join(path, "segments"))
    described, used = set(), set()
    for where, key, recording, start, end, channel in _spans(path, recordings):
        again = key in described
        described.add(key)
        used.add(recording)
        differing = spans.differing.get(key) or recordings.differing.get(recording)
        differing = differing or next((d for t in tables if (d := t.differing.get(key))), None)
        fields = {"text": texts.get(key, ""), "speaker": speakers.get(key), "language": languages.get(key)}
        fields["gender"] = genders.get(composed(fields["speaker"] or ""))
        fields["recording"] = recording if start is not None else None
        fields = {name: value for name, value in fields.items() if value is not None}
        if isinstance(start, DataError):
            yield Refused(where, key, "unreadable line", str(start))
        elif differing is not None:
            yield Refused(where, key, "id stands twice", differing)
        elif again:
            yield Noted(where, key, "line stands twice", "the same as before; taken once")
        elif recording not in recordings:
            yield Refused(where, key, "missing audio", f"wav.scp has no recording {recording!r}")
        else:
            seconds = None if end is None or start is None or end < 0 else end - start  # -1: to the end
            of_file = channels.get(recording) if channel is None else channel
            if isinstance(of_file, str):
                yield Refused(where, key, "unknown channel", f"{of_file!r} in reco2file_and_channel; A, B or numbers")
                continue
            file = recordings[recording]
            is_side = num_of_file[file] > 1 or recording in channels
            audio = Audio(file, start, seconds, of_file, is_side=is_side)
            if start is None:
                audio.stated = next((known for table in lengths if (known := _length(table.get(key)))), None)
            else:
                audio.whole_seconds = _length(lengths[1].get(recording))
            yield Utterance(key, [audio], fields, where, recording if start is not None else None)
    for table in (recordings, *tables, *lengths):
        yield from (Noted(where, key, "line stands twice", "the same as before") for where, key in table.repeated)
    if others := [key for key in recordings if key not in used]:
        detail = f"{len(others)} that no line of segments names: {some(others)}"
        yield Noted(f"{path}/wav.scp", "?", "recordings left out", detail)
    for key in texts:
        if key not in described:
            yield Refused(f"{path}/text", key, "missing audio", "neither segments nor wav.scp knows the utterance")


def _length(text: str | None) -> float | None:
    """Return a length that a folder states, None where it is no number above 0."""
    with contextlib.suppress(DataError):
        length = times.number(text, "length")
        return length if length is not None and length > 0 else None
    return None


class _Table(dict[str, str]):
    """A file of ids and what belongs to each.

    Attributes:
        differing: for each id that stands in several lines that differ, which those are.
        repeated: place and id of the lines that repeat another.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.differing: dict[str, str] = {}
        self.repeated: list[tuple[str, str]] = []
        first: dict[str, int] = {}
        for number, line in lines(path) if os.path.lexists(path) else ():
            key, *rest = composed(line).split(None, 1)
            value = line.split(None, 1)[1].strip() if rest else ""
            if self.setdefault(key, value) != value:
                name = os.path.basename(path)
                self.differing[key] = (
                    f"lines {first[key]} and {number} of {name} give it {self[key]:.60} and {value:.60}"
                )
            elif first.setdefault(key, number) != number:
                self.repeated.append((f"{path} line {number}", key))
        self.lines = first


def _recordings(path: str, audio_root: str | None) -> _Table:
    found = _Table(path)
    for key, target in found.items():
        number = found.lines[key]
        if target.endswith("|") or target.startswith("|"):
            raise DataError(
                f"{path} line {number}: recording {key!r} is the command {target!r:.80}. Commands are not run: write"
                " its output to a file and put that path here; for SPHERE files their own path is enough, and a channel"
                " that the command picks (-c 1, remix 1) is named in reco2file_and_channel (A or B)."
            )
        if _ARCHIVE.search(target):
            raise DataError(
                f"{path} line {number}: recording {key!r} lies in the archive {target!r}. Unpack it with Kaldi's"
                " wav-copy into files, and put their paths here."
            )
        if not target:
            raise DataError(f"{path} line {number}: recording {key!r} has no path.")
        try:
            found[key] = located(target, [audio_root or os.getcwd(), os.path.dirname(os.path.abspath(path))])
        except DataError as error:
            raise DataError(f"{path} line {number}: recording {key!r}: {error}.") from error
    return found


def _channels(path: str) -> dict[str, int | str | None]:
    """Return the channel of each recording, counted from 0; what is none as it is spelt; None where it may be two."""
    rows = [f"{key} {rest}".split() for key, rest in _Table(path).items()]
    spelt = {row[0]: row[2] for row in rows if len(row) == 3}
    given = set(spelt.values())
    first = 0 if "0" in given else 1  # as Kaldi's scripts write A and B, and others 1 and 2, or 0 and 1
    numbers: dict[str, int | None] = {str(number): number - first for number in range(first, 64)}
    if not given & (numbers.keys() - {"1"}):
        numbers["1"] = None
    return {recording: {**_SIDES, **numbers}.get(name.upper(), name) for recording, name in spelt.items()}


#: Where it stands, utterance, recording, begin and end in seconds, channel; an error in place of the begin.
_Span = tuple[str, str, str, float | DataError | None, float | None, int | None]
_SIDES = {"A": 0, "B": 1, "L": 0, "R": 1, "LEFT": 0, "RIGHT": 1}
_CHANNELS = {**_SIDES, **{str(channel): channel for channel in range(64)}}


def _spans(path: str, recordings: dict[str, str]) -> Iterator[_Span]:
    segments = os.path.join(path, "segments")
    if not os.path.lexists(segments):
        yield from ((f"{path}/wav.scp", key, key, None, None, None) for key in recordings)
        return
    for number, line in lines(segments):
        where, parts = f"{segments} line {number}", composed(line).split()
        try:
            key, recording, start, end = parts[:4]
            channel = None if parts[4:] in ([], ["-1"]) else _CHANNELS[" ".join(parts[4:])]
            yield where, key, recording, float(start), float(end), channel
        except (ValueError, KeyError):
            wanted = "expected: utterance, recording, begin, end, and perhaps a channel (0 or 1, A or B)"
            yield where, parts[0], "", DataError(wanted), None, None
