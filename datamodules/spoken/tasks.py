"""What can be asked of a recording of spoken numbers: its translation, a summary, questions, and a dialogue."""

import contextlib
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastslm.errors import ConfigError, nearest
from fastslm.path.prompt import AUDIO, AUDIO_BEGIN, AUDIO_END

from .numbers import build_once, number_words

#: Raised when the same recordings would give other tasks.
_FORMAT_VERSION = 1
TASKS = ("asr", "ast", "ssum", "sqqa", "dialogue")
_VALUES = {number_words(value): value for value in range(100)}

_TO_NINETEEN = (
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn"
    " achtzehn neunzehn"
)
_FROM_TWENTY = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"
_GERMAN, _GERMAN_TENS = _TO_NINETEEN.split(), _FROM_TWENTY.split()


def german_words(value: int) -> str:
    """Return 0..99 in German: 42 is ``zweiundvierzig``."""
    if value < 20:
        return _GERMAN[value]
    tens, ones = divmod(value, 10)
    first = "ein" if ones == 1 else _GERMAN[ones]
    return f"{first}und{_GERMAN_TENS[tens - 2]}" if ones else _GERMAN_TENS[tens - 2]


def check_tasks(tasks: Sequence[str], num_recordings: int) -> None:
    """Refuse tasks that cannot be dealt out to the recordings of the smallest split.

    Raises:
        ConfigError: one is unknown, there are none, or more than recordings.
    """
    if not tasks:
        raise ConfigError(f"data.tasks: none are given. Name some of {', '.join(TASKS)}, or set it to null.")
    for task in tasks:
        if task not in TASKS:
            raise ConfigError(f"data.tasks: unknown task {task!r}, known: {', '.join(TASKS)}.{nearest(task, TASKS)}")
    if num_recordings < len(tasks):
        raise ConfigError(
            f"data.tasks: {num_recordings} recordings cannot be dealt out to {len(tasks)} tasks. Raise"
            " data.train_recordings and data.dev_recordings, or name fewer."
        )


def _question(values: Sequence[int], rng: np.random.Generator) -> tuple[str, str]:
    place = int(rng.integers(0, max(1, len(values) - 1)))
    questions = [
        ("Which number comes first?", values[0]),
        ("Which number comes last?", values[-1]),
        ("Which number is the largest?", max(values)),
        ("Which number is the smallest?", min(values)),
        ("How many numbers are there?", len(values)),
    ]
    if values.count(values[place]) == 1 and len(values) > 1:
        questions.append((f"Which number comes after {number_words(values[place])}?", values[place + 1]))
    question, answer = questions[int(rng.integers(0, len(questions)))]
    return question, _in_words(answer)


def _in_words(value: int) -> str:
    return number_words(value) if value < 100 else str(value)


def fields_for(task: str, key: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return a sample's JSON for a task, from that of a recording's transcript.

    Args:
        task: one of ``TASKS``.
        key: of the recording; with its numbers it decides what is asked.
        fields: with ``text`` and ``segments``, one of them for each number.
    """
    values = [_VALUES[segment["text"]] for segment in fields["segments"]]
    if task == "asr" or not values:
        return fields
    kept = {name: value for name, value in fields.items() if name not in ("task", "segments")}
    question, answer = _question(values, np.random.default_rng(zlib.crc32(key.encode())))
    if task == "ast":
        translation = " ".join(german_words(value) for value in values)
        return {**kept, "task": task, "target_language": "German", "translation": translation}
    if task == "ssum":
        low, high = _in_words(min(values)), _in_words(max(values))
        return {**kept, "task": task, "summary": f"{_in_words(len(values))} numbers from {low} to {high}"}
    if task == "sqqa":
        return {**kept, "task": task, "question": question, "answer": answer}
    turns = [f"{AUDIO_BEGIN}{AUDIO}{AUDIO_END}\nWhat is said?", fields["text"], question, answer]
    roles = ("user", "assistant") * 2
    return {**kept, "messages": [{"role": r, "content": c} for r, c in zip(roles, turns, strict=True)]}


def tasks_folder(corpus: Path, tasks: Sequence[str]) -> Path:
    """Return where ``build_tasks`` puts the tasks of a corpus."""
    return corpus.with_name(f"{corpus.name}-{'-'.join(tasks)}-v{_FORMAT_VERSION}")


def build_tasks(corpus: Path, tasks: Sequence[str]) -> Path:
    """Write the recordings of a corpus once more, each for one of ``tasks`` in turn, unless that has been done.

    Returns:
        The folder with ``SPLIT-TASK.tar`` for each split and task; like the corpus's own, it is never half of it.

    Raises:
        DataError: it cannot be written.
    """
    write = partial(_write, corpus=corpus, tasks=tasks)
    return build_once(tasks_folder(corpus, tasks), write, "write the tasks of the spoken numbers to")


def _write(folder: Path, corpus: Path, tasks: Sequence[str]) -> None:
    import webdataset

    for split in ("train", "dev"):
        paths = [str(folder / f"{split}-{task}.tar") for task in tasks]
        with contextlib.ExitStack() as tars:
            writers = [tars.enter_context(webdataset.TarWriter(path, mtime=0, user="", group="")) for path in paths]
            for number, (key, flac, fields) in enumerate(_recordings(sorted(corpus.glob(f"{split}-*.tar")))):
                place = number % len(tasks)
                data = json.dumps(fields_for(tasks[place], key, fields), ensure_ascii=False).encode()
                writers[place].write({"__key__": key, "flac": flac, "json": data})


def _recordings(shards: Sequence[Path]) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    for shard in shards:
        with tarfile.open(shard) as tar:
            found: dict[str, bytes] = {}
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                key, _, extension = member.name.partition(".")
                found[extension] = content.read()
                if len(found) == 2:
                    yield key, found["flac"], json.loads(found["json"])
                    found = {}
