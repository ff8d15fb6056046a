"""Transcripts of other systems, from a folder of text files or from JSON lines, by the names of the recordings."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fastslm.audio.endings import AUDIO_ENDINGS
from fastslm.errors import DataError

#: Fields of a row that name its recording: the first that is there of each.
_KEYS = ("key", "id", "utt_id")
_PATHS = ("audio_filepath", "source", "audio", "file")
#: Fields that hold what a system wrote, and fields that hold the reference where one of those is there.
_HYPOTHESES = (
    "pred_text", "hypothesis", "prediction", "pred", "hyp", "pred_str", "predicted_text", "asr_text", "generated_text"
)  # fmt: skip
_TEXTS = ("transcription", "transcript", "text")
#: What else may name a field of what a system wrote: ``pred_text_NAME`` of NeMo, ``hyp_text``, ``text_pred``.
_MAYBE_HYPOTHESIS = re.compile(r"(^|_)(pred|hyp)(?!\w*lang)", re.IGNORECASE)
#: Of the first line of answers that ``fastslm evaluate`` keeps, which says what they were made with.
_MADE_WITH = frozenset({"model", "identity", "base_models"})
_SHOWN = 3
#: What files of transcripts are called, those that are read and others.
_NAMED_AS_TEXT = frozenset({".jsonl", ".json", ".txt", ".tsv", ".csv", ".stm", ".ctm", ".trn", ".srt", ".vtt"})


def are_transcripts(path: Path) -> bool:
    """Say whether a path means transcripts rather than a model: a file named as one, or a folder with text files."""
    if path.is_dir():
        return not (path / "config.json").exists() and next(path.rglob("*.txt"), None) is not None
    return path.suffix.lower() in _NAMED_AS_TEXT  # also where there is none: no model has such a name


def read_transcripts(path: Path) -> dict[str, str]:
    """Return texts by the name of their recording.

    Args:
        path: a folder of ``NAME.txt`` (folders below it are part of the name), or a ``.jsonl`` file whose rows name
            the recording (``key``, ``id``, ``audio_filepath``, ``source``) and hold ``pred_text``, ``hypothesis``,
            ``text`` or the like: what leaderboards, NeMo, ``fastslm transcribe --format jsonl`` and the answers of
            ``fastslm evaluate`` give.

    Raises:
        DataError: it cannot be read, does not say which of its fields is the transcript, or names a recording twice
            with two texts.
    """
    found: dict[str, str] = {}
    by_path: dict[str, str | None] = {}  # of rows that have a key, too; None where several have one path
    for place, name, other, text in _rows(path):
        if found.setdefault(name, text) != text:
            raise DataError(f"{place}: recording {name!r} has a transcript already, and another one.")
        if other and by_path.setdefault(other, text) != text:
            by_path[other] = None
    if not found:
        raise DataError(f"{path}: holds no transcript. Give a .jsonl file, or a folder of NAME.txt.")
    for other, text_of_path in by_path.items():
        last = _parts(other)[-1]
        if text_of_path is not None and found.get(last, text_of_path) != text_of_path:
            raise DataError(f"{path}: {last!r} is the key of one row and the audio of another. Leave one out.")
    return {**{other: text for other, text in by_path.items() if text is not None}, **found}


def _rows(path: Path) -> Iterator[tuple[str, str, str | None, str]]:
    """Yield where a transcript stands, the name of its recording, its path where that is another, and the text."""
    try:
        if path.is_dir():
            for file in sorted(path.rglob("*.txt")):
                name = file.relative_to(path).with_suffix("").as_posix()
                yield str(file), name, None, file.read_text(encoding="utf-8-sig").strip()
            return
        if path.suffix != ".jsonl" and path.exists():
            raise DataError(f"{path}: transcripts are read from .jsonl, or from a folder of NAME.txt.")
        with path.open(encoding="utf-8-sig") as lines:
            places = ((f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip())
            rows = [(place, _row(line, place)) for place, line in places]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason}).") from error
    if rows and rows[0][1].keys() >= _MADE_WITH:
        del rows[0]
    # A field of the whole file, not of a row: where a system wrote nothing, the text beside it is the reference.
    fields = [name for name in _HYPOTHESES if any(name in row for _, row in rows)] or _TEXTS
    for place, row in rows:
        yield place, *_names_of(row, place), _text_of(row, fields, place)


def _row(line: str, place: str) -> Mapping[str, Any]:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: no JSON ({error}).") from error
    if not isinstance(row, Mapping):
        raise DataError(f"{place}: no JSON object.")
    return row


def _names_of(row: Mapping[str, Any], place: str) -> tuple[str, str | None]:
    key, file = (next((row[k] for k in names if row.get(k) not in (None, "")), None) for names in (_KEYS, _PATHS))
    name = file if key is None else key
    if not isinstance(name, (str, int)):
        raise DataError(f"{place}: names no recording; one of the fields {', '.join(_KEYS + _PATHS)} must.")
    other = file if key is not None and isinstance(file, str) and _parts(file)[-1] != _parts(str(key))[-1] else None
    return str(name), other


def _text_of(row: Mapping[str, Any], fields: Sequence[str], place: str) -> str:
    """Return what a system wrote, in one of ``fields``."""
    texts = {name: row[name] for name in fields if row.get(name) is not None}
    if not texts and fields is not _TEXTS:
        raise DataError(
            f"{place}: {' and '.join(fields)}, where this file has what the system wrote, is null or missing. Write"
            ' "" where it wrote nothing.'
        )
    if not texts or not all(isinstance(text, str) for text in texts.values()):
        raise DataError(f"{place}: holds no transcript; one of the fields {', '.join(_HYPOTHESES + _TEXTS)} must.")
    others = {name for name, value in row.items() if isinstance(value, str) and _MAYBE_HYPOTHESIS.search(name)}
    if others and fields is _TEXTS:
        raise DataError(
            f"{place}: {min(others)!r} may be what the system wrote, and the text beside it the reference. Call"
            " what the system wrote 'pred_text'."
        )
    if len(stripped := {text.strip() for text in texts.values()}) > 1:
        fields = " and ".join(map(repr, texts))
        raise DataError(f"{place}: {fields} differ. Call what the system wrote 'pred_text'.")
    return str(stripped.pop())


def matched(texts: Mapping[str, str], keys: Sequence[str], place: str) -> dict[str, str]:
    """Return the transcript of each recording.

    A transcript belongs to a recording of its name, whatever the folder and the ending: ``audio/a1.flac`` is ``a1``.
    Where several have that name, their folders tell them apart: ``in/spk1/a1.flac`` is ``spk1/a1``, not ``spk2/a1``.

    Args:
        texts: by name.
        keys: of the recordings.
        place: what to call the transcripts in a message.

    Raises:
        DataError: a recording has none, since a score without it would be another one, or two that differ, or a
            transcript may be of several recordings.
    """
    by_last: dict[str, list[str]] = {}
    for name in texts:
        by_last.setdefault(_parts(name)[-1], []).append(name)
    alike = Counter(_parts(key)[-1] for key in set(keys))
    found: dict[str, str] = {}
    taken: dict[str, str] = {}
    missing: list[str] = []
    for key in keys:
        parts = _parts(key)
        names = [key] if key in texts else by_last.get(parts[-1], [])
        if len(names) > 1 or alike[parts[-1]] > 1:
            names = [name for name in names if _agree(_parts(name), parts)]
        if len({texts[name] for name in names}) > 1:
            raise DataError(f"{place}: {', '.join(sorted(names))} could all be recording {key!r}. Name them apart.")
        if not names:
            missing.append(key)
            continue
        if (other := taken.setdefault(names[0], key)) != key:
            raise DataError(f"{place}: {names[0]!r} could be recording {other!r} and {key!r}. Name them apart.")
        found[key] = texts[names[0]]
    if missing:
        raise DataError(
            f"{place}: {len(missing)} of {len(keys)} recordings have no transcript, such as {_some(missing)}. An empty"
            " transcript counts as deletions; a missing one is refused."
        )
    return found


def _parts(name: str) -> tuple[str, ...]:
    """Return the folders of a name and its last part, without its ending where it is that of an audio file."""
    path = PurePosixPath(name)
    last = path.stem if path.suffix.lower() in AUDIO_ENDINGS else path.name
    return *path.parts[:-1], last


def _agree(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    shorter = min(len(one), len(other))
    return one[-shorter:] == other[-shorter:]


def _some(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in list(names)[:_SHOWN])
