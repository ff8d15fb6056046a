"""Where transcripts go: standard output, or one file for each recording, kept when the command is run again."""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastslm.errors import ConfigError, DataError
from fastslm.files import write_atomically
from fastslm.inference.audio import find_audio
from fastslm.inference.formats import render
from fastslm.inference.results import Answer

from .notes import Notes

#: Ends of addresses that name no file.
_NO_NAMES = ("", ".", "..")


@dataclass(frozen=True)
class Job:
    """One recording to transcribe.

    Attributes:
        audio: what to open.
        output: the file to write; None for standard output.
    """

    audio: str
    output: Path | None


def find_jobs(inputs: Sequence[str], folder: Path | None, form: str) -> list[Job]:
    """Return what to transcribe, and where to.

    A folder's recordings keep their place below it; of several folders, below the name of theirs. An output is
    called like its recording, ``talk.srt`` for
    ``talk.mp3``; where two recordings would share one, both keep their endings: ``talk.mp3.srt`` and ``talk.wav.srt``.

    Args:
        inputs: files, folders, URLs, ``-``.
        folder: where outputs go; None for standard output.
        form: one of ``FORMATS``.

    Raises:
        ConfigError: a name is empty, or two outputs would have the same.
        DataError: a folder holds no audio.
    """
    if "" in inputs:
        raise ConfigError("the name of a recording is empty.")
    found: list[tuple[str, Path]] = []
    folders = [given for given in inputs if given != "-" and "://" not in given and Path(given).is_dir()]
    for given in inputs:
        if given in folders:
            base = Path() if len(folders) == 1 else Path(os.path.basename(os.path.realpath(given)))
            found += [(str(path), base / path.relative_to(given)) for path in find_audio(Path(given))]
        else:
            place = urlsplit(given).path if "://" in given else given  # a query may hold slashes and secrets
            name = "stdin" if given == "-" else place.rstrip("/").rpartition("/")[2]
            found.append((given, Path("audio" if name in _NO_NAMES else name)))
    found = list(dict(found).items())  # a file may be given by itself and in its folder
    if folder is None:
        return [Job(audio, None) for audio, _ in found]
    short = [name.with_suffix(f".{form}") for _, name in found]
    shared = {path for path in short if short.count(path) > 1} if len(set(short)) < len(short) else set()
    outputs = [
        name.with_name(f"{name.name}.{form}") if path in shared else path
        for (_, name), path in zip(found, short, strict=True)
    ]
    taken: dict[Path, str] = {}
    for (audio, _), path in zip(found, outputs, strict=True):
        if path in taken:
            raise ConfigError(f"--output: {taken[path]} and {audio} would both be written to {path}. Do them apart.")
        taken[path] = audio
    return [Job(audio, folder / path) for (audio, _), path in zip(found, outputs, strict=True)]


def unfinished(
    jobs: Sequence[Job], notes: Notes, settings: dict[str, Any], overwrite: bool
) -> tuple[list[Job], list[str]]:
    """Return the jobs that are to be done, and what stands in the way of others, a sentence each.

    What is neither is finished: the text that is there was made from this recording with these settings.

    Args:
        jobs: all of them.
        notes: of the output folder.
        settings: what the text depends on.
        overwrite: do all.

    Raises:
        ConfigError: a text was made with other settings.
    """
    waiting, refused = [], []
    for job in jobs:
        if job.output is None or overwrite:
            waiting.append(job)
            continue
        try:
            state, note = notes.look(job.output, job.audio, settings)
        except DataError:  # said when it is its turn
            waiting.append(job)
            continue
        if state == "other settings":
            assert note is not None
            changed = [f"{name} {note.settings.get(name)!r}, now {settings[name]!r}" for name in note.changed(settings)]
            raise ConfigError(
                f"--output {notes.folder}: {job.output.name} was made with other settings ({'; '.join(changed)})."
                " Choose another folder, or --overwrite to make it anew."
            )
        if state == "edited":
            print(f"{job.audio}: has changed since it was transcribed, and is done anew.", file=sys.stderr)
        if state in ("nothing", "edited"):
            waiting.append(job)
        elif state != "finished":
            what = "was not written by this command, or was changed since" if note is None else (
                f"is the text of another recording, {note.recording.path}"
            )  # fmt: skip
            refused.append(f"{job.audio}: {job.output} {what}; choose another --output, or --overwrite it")
    return waiting, refused


def identity(model: Path) -> str:
    """Return a short mark of a checkpoint or an exported folder: names, sizes and times of its files."""
    found = model.resolve()
    files = sorted(path for path in found.rglob("*") if path.is_file()) if found.is_dir() else [found]
    facts = [(str(path.relative_to(found.parent)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def base_models(model: Path) -> dict[str, str]:
    """Return marks of the folders with encoder and LLM that a checkpoint stands on; an exported folder has its own.

    Raises:
        CheckpointError: it is no checkpoint.
        ConfigError: a folder that it names is not there.
    """
    from fastslm.checkpoint.run import bases_of
    from fastslm.inference.exported import is_exported

    return {} if is_exported(model) else bases_of(model)


def save(job: Job, answer: Answer, form: str, headed: bool, note: Callable[[Path, str], None]) -> None:
    """Write an answer to its file, or to standard output.

    Args:
        job: where to.
        answer: what.
        form: one of ``FORMATS``.
        headed: put the recording's name above its text.
        note: told the file and its text, before that is written.
    """
    text = render(answer, form)
    if job.output is not None:
        try:
            note(job.output, text)
            write_atomically(job.output, text)
        except OSError as error:
            raise DataError(f"{job.output}: cannot be written: {error.strerror}") from error
        return
    if headed and form != "jsonl":
        print(f"==> {job.audio} <==")
    print(text, end="", flush=True)
