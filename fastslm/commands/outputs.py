"""Where transcripts go: standard output, or one file for each recording, kept when the command is run again."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastslm.errors import ConfigError, DataError
from fastslm.files import write_atomically
from fastslm.inference.audio import find_audio
from fastslm.inference.formats import render
from fastslm.inference.results import Answer

#: In the output folder: what its transcripts were made with.
SETTINGS = ".fastslm-transcribe.json"


@dataclass(frozen=True)
class Job:
    """One recording to transcribe.

    Attributes:
        audio: what to open.
        output: the file to write; None for standard output.
    """

    audio: str
    output: Path | None

    @property
    def finished(self) -> bool:
        """Whether the output is there; it is written whole or not at all."""
        return self.output is not None and self.output.is_file()


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
        DataError: a folder holds no audio.
    """
    found: list[tuple[str, Path]] = []
    folders = [given for given in inputs if given != "-" and "://" not in given and Path(given).is_dir()]
    for given in inputs:
        if given in folders:
            base = Path(given) if len(folders) == 1 else Path(given).resolve().parent
            found += [(str(path), path.resolve().relative_to(base.resolve())) for path in find_audio(Path(given))]
        else:
            name = "stdin" if given == "-" else given.rstrip("/").rpartition("/")[2].partition("?")[0] or "audio"
            found.append((given, Path(name)))
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


def check_settings(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Note what the transcripts of a folder are made with, and refuse to mix.

    Raises:
        ConfigError: the folder's transcripts were made with other settings.
    """
    path = folder / SETTINGS
    if path.is_file() and not overwrite:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        changed = [f"{name} {before.get(name)!r}, now {value!r}" for name, value in settings.items()
                   if before.get(name) != value]  # fmt: skip
        if changed:
            raise ConfigError(
                f"--output {folder}: its transcripts were made with other settings ({'; '.join(changed)}). Choose"
                " another folder, or --overwrite to make them anew."
            )
    write_atomically(path, json.dumps(settings, indent=1) + "\n")


def identity(checkpoint: str) -> str:
    """Return a short mark of a checkpoint: where it is, its size and time."""
    path = Path(checkpoint)
    stat = path.stat()
    return hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]


def save(job: Job, answer: Answer, form: str, headed: bool) -> None:
    """Write an answer to its file, or to standard output.

    Args:
        job: where to.
        answer: what.
        form: one of ``FORMATS``.
        headed: put the recording's name above its text.
    """
    text = render(answer, form)
    if job.output is not None:
        try:
            write_atomically(job.output, text)
        except OSError as error:
            raise DataError(f"{job.output}: cannot be written: {error.strerror}") from error
        return
    if headed and form != "jsonl":
        print(f"==> {job.audio} <==")
    print(text, end="", flush=True)
