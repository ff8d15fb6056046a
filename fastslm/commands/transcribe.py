"""``fastslm transcribe``: recordings of any length and format to text, subtitles or JSON lines."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastslm.errors import ConfigError, DataError, FastSLMError
from fastslm.files import remove_partials
from fastslm.inference.formats import FORMATS, TIMED, clock
from fastslm.plugins import names_of

from .notes import Notes, Recording
from .outputs import Job, base_models, find_jobs, identity, save, unfinished
from .parser import command_parser
from .progress import AudioBar
from .streams import give_up_output, needs_output

if TYPE_CHECKING:
    from fastslm.inference.engine import Decoding
    from fastslm.inference.model import Model
    from fastslm.inference.results import Answer
    from fastslm.path.request import Request

_DESCRIPTION = """\
Transcribe recordings of any length. FILES are audio or video files, folders (searched below), URLs, or - for standard
input. Reads what soundfile reads (WAV, FLAC, MP3, OGG, ...), and after pip install 'fastslm[av]' m4a, aac, webm,
mp4, ..."""

_EPILOG = """\
examples:
  fastslm transcribe talk.mp3                                   text to the terminal, by the model in runs/hta
  fastslm transcribe talks/ --model runs/mine --output texts/   a folder; run it again to go on where it stopped
  fastslm transcribe talk.mp3 --format srt --output .           subtitles by window
  fastslm transcribe day.flac --model runs/mine --section-minutes 5    hours of audio, five minutes at a time
  fastslm transcribe talk.mp3 --task ast --language Korean      translation
  curl -s https://example.org/talk.mp3 | fastslm transcribe -

exit status: 0 all done; 1 some files failed, the others are written; 2 could not start; 130 interrupted."""

#: Options that change the text, beside ``--beam``, by the names that ``Model.transcribe`` has for them.
_SETTINGS = (
    "task", "prompt", "language", "temperature", "top_p", "seed", "max_new_tokens", "section_minutes", "letters"
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    made = command_parser("transcribe", _DESCRIPTION, _EPILOG, allow_abbrev=False)
    made.add_argument("files", nargs="+", metavar="FILES")
    add_model_options(made)
    made.add_argument("--output", metavar="DIR", help="write one file for each recording; - or nothing: print")
    made.add_argument("--format", choices=FORMATS, default="txt", help="default: txt; srt and vtt have window times")
    made.add_argument("--overwrite", action="store_true", help="transcribe again what is already in DIR")
    made.add_argument(
        "--task",
        metavar="NAME",
        default="asr",
        help=f"the task: {', '.join(names_of('tasks'))}, or a task that an exported MODEL brings (default: asr)",
    )
    made.add_argument("--prompt", metavar="TEXT", help="prompt in place of the task's own; the question of sqqa")
    made.add_argument("--language", metavar="NAME", help="what ast translates into, such as Korean (default: English)")
    add_decoding_options(made)
    made.add_argument("--section-minutes", type=float, metavar="M", help="transcribe M minutes at a time")
    add_letters_option(made)
    made.add_argument("--batch-size", type=int, default=8, metavar="N", help="most files in a batch (default: 8)")
    return made


def add_model_options(made: argparse.ArgumentParser) -> None:
    """Add which model, and where."""
    made.add_argument(
        "--model",
        metavar="MODEL",
        help="run folder, checkpoint, exported folder, or OWNER/NAME of the hub (default: the run in runs/hta)",
    )
    made.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: the first GPU if there is one)")


def add_decoding_options(made: argparse.ArgumentParser) -> None:
    """Add how tokens are chosen."""
    made.add_argument(
        "--beam", type=int, default=1, metavar="N", help="beam search over N hypotheses (default: greedy)"
    )
    made.add_argument("--temperature", type=float, default=0.0, metavar="T", help="above 0: sample tokens (default: 0)")
    made.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus sampling (default: 1)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    made.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: follows the audio)")


def add_letters_option(made: argparse.ArgumentParser) -> None:
    """Add whether letters give the words."""
    made.add_argument(
        "--letters",
        action="store_true",
        help="search the letters that speech tokens spell, each word judged by the LLM; for runs with"
        " model.letters_per_token",
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    try:
        return _run(parser().parse_args(list(arguments[1:])))
    except BrokenPipeError:  # the reader of standard output has seen enough
        give_up_output()
        return 0


def _run(options: argparse.Namespace) -> int:
    if options.output == "":
        raise ConfigError("--output: the name of the folder is empty.")
    folder = None if options.output in (None, "-") else Path(os.path.expanduser(options.output))
    if options.batch_size < 1:
        raise ConfigError(f"--batch-size: {options.batch_size} must be at least 1.")
    if folder is None:
        needs_output(" Give --output DIR.")
    request, decoding = _request(options), decoding_of(options)
    _check_form(options, request)
    settings = {"beams": options.beam, **{name: getattr(options, name) for name in _SETTINGS}}
    jobs = find_jobs(options.files, folder, options.format)
    if options.format in TIMED and folder is None and len(jobs) > 1:
        raise ConfigError(
            f"--format {options.format}: {len(jobs)} recordings need a folder of their own: --output DIR."
        )

    from fastslm.inference.load import find_model, load

    refused: list[str] = []
    notes, waiting, noted = None, jobs, settings
    found = find_model(options.model)  # once: a run that is being trained may have another one at any time
    if folder is not None:
        made_with = {"format": options.format, "model": identity(found), "base_models": base_models(found)}
        noted = {**settings, **made_with}
        notes = _notes_of(folder)
        remove_partials(job.output for job in jobs if job.output is not None)
        waiting, refused = unfinished(jobs, notes, noted, options.overwrite)
    num_kept = len(jobs) - len(waiting) - len(refused)
    if num_kept:
        print(f"{num_kept} of {len(jobs)} are finished and kept (--overwrite: anew).", file=sys.stderr)
    for line in refused:
        print(f"fastslm: failed: {line}", file=sys.stderr)
    if not waiting:
        return 1 if refused else 0
    model = load(found, device=options.device)
    model.spells(request, decoding, options.letters, options.max_new_tokens, options.section_minutes)
    status = _Transcription(model, options, settings, notes, noted).run(waiting, len(jobs) > 1)
    return status or bool(refused)


def decoding_of(options: argparse.Namespace) -> "Decoding":
    """Return how tokens are chosen, by the options of ``add_decoding_options``."""
    from fastslm.inference.engine import Decoding

    return Decoding(options.beam, options.temperature, options.top_p, options.seed)


def _check_form(options: argparse.Namespace, request: "Request") -> None:
    from fastslm.inference.arguments import check_limits

    by_section = options.section_minutes is not None or options.format in TIMED
    if by_section and not request.definition.timed:
        which = f"--format {options.format}" if options.format in TIMED else "--section-minutes"
        raise ConfigError(f"{which}: task {options.task} answers about the whole audio, not by time as asr does.")
    check_limits(options.max_new_tokens, options.section_minutes)


def _request(options: argparse.Namespace) -> "Request":
    """Return what is asked; a task that is not installed is that of the exported folder."""
    from fastslm.inference.exported import tasks_in
    from fastslm.inference.load import find_model
    from fastslm.path.request import Request
    from fastslm.tasks import tasks

    foreign = options.task not in tasks() and options.model is not None
    brought = tasks_in(find_model(options.model)).get(options.task) if foreign else None
    return Request(options.task, options.prompt, options.language, brought)


def _notes_of(folder: Path) -> Notes:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Notes(folder)
    except OSError as error:
        raise ConfigError(f"--output {folder}: cannot be written to: {error.strerror}") from error


class _Transcription:
    """The files of one command."""

    def __init__(
        self,
        model: "Model",
        options: argparse.Namespace,
        settings: dict[str, Any],
        notes: Notes | None,
        noted: dict[str, Any],
    ) -> None:
        self.model, self.options, self.settings = model, options, settings
        self.notes, self.noted = notes, noted
        self.alone = settings["section_minutes"] is not None or options.format in TIMED
        self.failed: list[str] = []
        self.num_done, self.done_seconds, self.warned = 0, 0.0, 0

    def run(self, jobs: Sequence[Job], headed: bool) -> int:
        """Transcribe and return the exit status."""
        from fastslm.inference.batch import side_by_side

        began = time.perf_counter()
        lengths = [_seconds(job.audio) for job in jobs]
        total = sum(length or 0.0 for length in lengths)
        with AudioBar(total or None) as bar:
            try:
                for group in side_by_side(
                    list(zip(jobs, lengths, strict=True)), 1 if self.alone else self.options.batch_size
                ):
                    self._group(group, bar, headed)
            except KeyboardInterrupt:
                bar.say(f"Interrupted: {self.num_done} of {len(jobs)} are finished and kept.")
                return 130
        spent = max(time.perf_counter() - began, 1e-9)
        print(
            f"{self.num_done} of {len(jobs)} done: {clock(self.done_seconds)} of audio in {clock(spent)},"
            f" {self.done_seconds / spent:.0f}x real time"
            f"{f'; {self.warned} with warnings' if self.warned else ''}"
            f"{f'; {len(self.failed)} failed' if self.failed else ''}.",
            file=sys.stderr,
        )
        return 1 if self.failed else 0

    def _group(self, jobs: Sequence[Job], bar: AudioBar, headed: bool) -> None:
        recordings = [self._recording(job) for job in jobs]  # as they are before they are read
        for job, recording, answer in zip(jobs, recordings, self._answers(jobs, bar), strict=True):
            try:
                if isinstance(answer, FastSLMError):
                    raise answer
                save(job, answer, self.options.format, headed, partial(self._note, recording))
            except FastSLMError as error:
                self.failed.append(job.audio)
                bar.say(f"fastslm: failed: {error}")
                continue
            self.num_done, self.done_seconds = self.num_done + 1, self.done_seconds + answer.seconds
            self.warned += bool(answer.warnings or answer.remarks)
            for remark in answer.remarks:
                bar.say(f"fastslm: warning: {job.audio}: {remark}")
            for warning in answer.warnings:
                bar.say(f"fastslm: warning: {job.audio}: the text {warning}")
        bar.finish(self.done_seconds)

    def _recording(self, job: Job) -> Recording | None:
        try:
            return Recording.of(job.audio) if self.notes else None
        except DataError:  # said when it is transcribed
            return None

    def _note(self, recording: Recording | None, output: Path, text: str) -> None:
        if self.notes and recording:
            self.notes.add(output, text, recording, self.noted)

    def _answers(self, jobs: Sequence[Job], bar: AudioBar) -> "list[Answer | FastSLMError]":
        from torch import OutOfMemoryError

        try:
            if len(jobs) > 1:
                together = {name: value for name, value in self.settings.items() if name != "section_minutes"}
                return self.model.transcribe_batch([job.audio for job in jobs], on_progress=bar, **together)
            by_window = self.options.format in TIMED
            return [self.model.transcribe(jobs[0].audio, segments=by_window, on_progress=bar, **self.settings)]
        except FastSLMError as error:  # a batch gives errors in place of answers, but for what is wrong with all
            return [error] * len(jobs)
        except OutOfMemoryError:
            if len(jobs) > 1:
                bar.say(f"{len(jobs)} files side by side do not fit in memory: one by one (--batch-size 1).")
                return [answer for job in jobs for answer in self._answers([job], bar)]
            return [DataError(f"{jobs[0].audio}: the device's memory is too small for it; try --section-minutes 5")]


def _seconds(audio: str) -> float | None:
    """Return a file's length where its header tells; whatever is wrong with it is said when it is its turn."""
    from fastslm.inference.audio import FileSource

    if audio == "-" or "://" in audio:
        return None
    try:
        return FileSource(Path(audio)).seconds
    except FastSLMError:
        return None
