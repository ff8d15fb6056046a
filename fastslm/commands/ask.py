"""``fastslm ask``: questions about a recording, which is encoded once."""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from fastslm.errors import ConfigError, DataError

from .parser import command_parser
from .progress import AudioBar
from .streams import needs_output
from .transcribe import add_decoding_options, add_model_options, decoding_of

_EPILOG = """\
examples:
  fastslm ask talk.mp3 "Who speaks?" "What do they decide?"
  fastslm ask talk.mp3 "When is the next meeting?" --model runs/mine --format jsonl

The audio is encoded, and read by the LLM, once, however many questions there are.
exit status: 0 answered; 2 the audio, the model or an option cannot be used; 130 interrupted."""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = command_parser("ask", "Ask questions about a recording of any length.", _EPILOG, allow_abbrev=False)
    parser.add_argument("file", metavar="FILE", help="audio or video file, URL, or - for standard input")
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    add_model_options(parser)
    parser.add_argument("--format", choices=("txt", "jsonl"), default="txt", help="default: txt")
    add_decoding_options(parser)
    options = parser.parse_args(list(arguments[1:]))
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    from fastslm.inference.arguments import check_limits
    from fastslm.inference.audio import open_audio
    from fastslm.inference.load import load
    from fastslm.path.request import Request

    needs_output()
    decoding_of(options)
    for question in options.questions:
        Request("sqqa", question)
        if os.path.isfile(question):
            raise ConfigError(f"{question}: is a file, and not a question. Ask about one recording at a time.")
    check_limits(options.max_new_tokens)
    try:
        source = open_audio(options.file)
    except DataError as error:
        raise DataError(f"{options.file}: {error}") from error
    model = load(options.model, device=options.device)
    with AudioBar(source.seconds) as bar:
        answers = model.ask_all(
            source,
            options.questions,
            beams=options.beam,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            max_new_tokens=options.max_new_tokens,
            on_progress=bar,
        )
    for remark in answers[0].remarks if answers else ():
        print(f"fastslm: warning: {options.file}: {remark}", file=sys.stderr)
    for answer in answers:
        if options.format == "jsonl":
            print(json.dumps(answer.to_dict(), ensure_ascii=False))
        else:
            print(f"{answer.prompt}\n  {answer.text}" if len(answers) > 1 else answer.text)
        for warning in answer.warnings:
            print(f"fastslm: warning: {answer.prompt!r}: the answer {warning}", file=sys.stderr)
    return 0
