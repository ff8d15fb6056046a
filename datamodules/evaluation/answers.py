"""A model's transcripts of a set, kept recording by recording, so that a run that was cut off goes on."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from fastslm.commands.notes import changed_settings
from fastslm.errors import ConfigError, DataError, FastSLMError
from fastslm.evaluation.score import Transcript
from fastslm.files import open_file, sealed, unsealed, write_atomically

from .recordings import EvaluationSet, Recording

if TYPE_CHECKING:
    from fastslm.inference.model import Model
    from fastslm.inference.results import Answer


@dataclass
class Answering:
    """How a model transcribes.

    Attributes:
        model: that transcribes.
        settings: arguments of ``Model.transcribe``.
        made_with: what the text depends on; kept beside the answers.
        batch_size: most recordings side by side.
        overwrite: transcribe anew what has an answer.
    """

    model: "Model"
    settings: dict[str, Any]
    made_with: dict[str, Any]
    batch_size: int
    overwrite: bool

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Answering":
        """Return it as the command's options say; loads the model.

        Raises:
            ConfigError: an option makes no sense, or the model cannot be used.
        """
        from fastslm.commands.outputs import base_models, identity
        from fastslm.inference.arguments import check_limits, whole_number
        from fastslm.inference.engine import Decoding
        from fastslm.inference.load import find_model, load
        from fastslm.path.request import Request

        whole_number("--batch-size", options.batch_size, 1, 1 << 20)
        check_limits(options.max_new_tokens, options.section_minutes)
        decoding = Decoding(options.beam)
        settings = {"beams": options.beam, "max_new_tokens": options.max_new_tokens, "letters": options.letters}
        sections = {"section_minutes": options.section_minutes} if options.section_minutes is not None else {}
        checkpoint = find_model(options.system)  # once: a run that is being trained may have another one at any time
        made_with = {
            "model": str(checkpoint.resolve()),
            "identity": identity(checkpoint),
            "base_models": base_models(checkpoint),
        }
        model = load(checkpoint, device=options.device)
        model.spells(Request(), decoding, options.letters, options.max_new_tokens, options.section_minutes)
        return cls(
            model,
            settings | sections,
            {**made_with, **settings, **sections},
            1 if sections else options.batch_size,
            options.overwrite,
        )


def transcribe_set(answering: Answering, data: EvaluationSet, kept: Path) -> tuple[list[Transcript], int]:
    """Return a transcript of each recording, and how many could not be made; those are empty.

    ``kept`` is JSON lines, what the answers were made with first; answers of before that belong to it are taken.

    Raises:
        ConfigError: the answers kept there were made with something else.
        DataError: they cannot be read or written.
    """
    from fastslm.inference.batch import side_by_side

    done = _read(kept, answering, data)
    waiting = sorted((r for r in data.recordings if r.key not in done), key=lambda r: r.seconds)
    if have := len(data.recordings) - len(waiting):
        print(f"{data.name}: {have} of {len(data.recordings)} recordings have their answer.", file=sys.stderr)
    bar = tqdm(
        total=sum(r.seconds for r in waiting),
        desc=data.name,
        disable=None,
        leave=False,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio, {remaining} left",
    )
    with bar, kept.open("a", encoding="utf-8") as file:
        for group in side_by_side([(r, r.seconds) for r in waiting], answering.batch_size):
            began = time.perf_counter()
            answers = _answers(answering, group)
            spent, audio = time.perf_counter() - began, sum(r.seconds for r in group) or 1.0
            for recording, answer in zip(group, answers, strict=True):
                row = _row(recording, answer, spent * recording.seconds / audio)
                done[recording.key] = row
                file.write(_line(row))
                bar.update(recording.seconds)
                for warning in row["warnings"]:
                    bar.write(f"{data.name}: {recording.key}: the text {warning}", file=sys.stderr)
                if row["error"]:
                    bar.write(f"{data.name}: failed, counts as empty: {row['error']}", file=sys.stderr)
            file.flush()
    transcripts = [
        Transcript(
            r.key, r.reference, done[r.key]["text"], r.seconds, done[r.key]["work_seconds"],
            r.normaliser,
        )
        for r in data.recordings
    ]  # fmt: skip
    return transcripts, sum(bool(done[r.key]["error"]) for r in data.recordings)


def _answers(answering: Answering, group: Sequence[Recording]) -> "list[Answer | FastSLMError]":
    audios = [recording.audio for recording in group]
    if len(group) > 1:
        return answering.model.transcribe_batch(audios, **answering.settings)
    try:
        return [answering.model.transcribe(audios[0], **answering.settings)]
    except DataError as error:  # of this recording; what is wrong with the request or the model ends the evaluation
        return [error]


def _row(recording: Recording, answer: "Answer | FastSLMError", work_seconds: float) -> dict[str, Any]:
    row = {"key": recording.key, "audio": recording.digest, "text": "", "seconds": recording.seconds}
    row["work_seconds"] = round(work_seconds, 4)
    if isinstance(answer, FastSLMError):
        return {**row, "warnings": [], "error": str(answer)}
    return {**row, "text": answer.text, "warnings": answer.warnings, "error": ""}


def _line(content: dict[str, Any]) -> str:
    return json.dumps(sealed(content), ensure_ascii=False) + "\n"


def _check_row(row: dict[str, Any]) -> None:
    """Raise ValueError where a line is no answer."""
    kinds: dict[str, Any] = {"key": str, "text": str, "work_seconds": int | float, "error": str}
    if not all(isinstance(row.get(name), kind) for name, kind in kinds.items()):
        raise ValueError(f"it is no answer: {json.dumps(row, ensure_ascii=False):.80}")


def _read(kept: Path, answering: Answering, data: EvaluationSet) -> dict[str, dict[str, Any]]:
    """Return the answers of before by key; begins the file where there is none, or another is wanted."""
    try:
        with open_file(kept) as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise DataError(f"{kept}: cannot be read: {error.strerror or error}.") from error
    whole = lines[:-1]  # a line that was cut off by a kill has no end
    found: dict[str, dict[str, Any]] = {}
    if whole and not answering.overwrite:
        content: list[dict[str, Any]] = []
        try:
            for number, line in enumerate(whole, 1):  # the settings, then the answers
                content.append(unsealed(json.loads(line.decode())))
                if number > 1:
                    _check_row(content[-1])
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
            again = "the line to transcribe its recording anew, or the file" if number > 1 else "it"
            raise DataError(f"{kept}: line {number} is damaged ({error}). Remove {again} to transcribe all.") from error
        first, *rows = content
        if changed := changed_settings(first, answering.made_with):
            what = "; ".join(f"{name} {first.get(name)!r}, now {answering.made_with[name]!r}" for name in changed)
            raise ConfigError(f"{kept}: made with other settings ({what}). Choose another --out, or --overwrite.")
        digests = {recording.key: recording.digest for recording in data.recordings}
        known = list({row["key"]: row for row in rows if not row["error"]}.values())
        found = {row["key"]: row for row in known if digests.get(row["key"], row.get("audio")) == row.get("audio")}
        if others := len(known) - len(found):
            print(f"{data.name}: {others} answers in {kept} are of other audio, and left out.", file=sys.stderr)
    kept.parent.mkdir(parents=True, exist_ok=True)
    rows = [answering.made_with, *found.values()]
    write_atomically(kept, "".join(map(_line, rows)))
    return found
