"""The command: fit, validate, test and predict on LightningCLI; the other commands are dispatched beside it.

Nothing heavy is imported at the top, so that ``fastslm --help`` answers at once.
"""

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import TracebackType

from fastslm.commands.streams import OutputError, PrintedStream, give_up_output
from fastslm.errors import FastSLMError, nearest
from fastslm.files import WAYS_OUT
from fastslm.processes.launched import check_ranks
from fastslm.processes.signals import EXIT_STATUS, Terminated, ending_in_order
from fastslm.redaction import redacted
from fastslm.trust import trusted_process

_HELP = """\
usage: fastslm COMMAND [options]

Train speech LLMs on long audio: frozen speech encoder, compressor, LLM with LoRA.

Train and evaluate:
  fit        train; try: fastslm fit --config configs/hta.yaml
  validate   loss, WER and CER of a checkpoint on the validation set
  test       the same on the test set
  predict    write hypotheses of a checkpoint to predictions.jsonl
  evaluate   WER of a model or of another system's transcripts, by Whisper's normaliser, with intervals
  ablate     train variants of one configuration over several seeds; writes a table and plots

Data:
  shards     convert a corpus to tar shards; index, check, count and reshard them: fastslm shards --help

Use a trained model:
  transcribe      audio of any length to text or subtitles; try: fastslm transcribe talk.mp3
  ask             ask questions about a recording, which is encoded once
  serve           OpenAI's API and a web page; try: fastslm serve runs/hta

Import and export:
  import-release  turn the FastSLM authors' checkpoint into a run
  export          write a run as a Hugging Face folder that needs no fastslm
  push            upload an exported folder to the Hugging Face hub
  checkpoint      inspect a checkpoint, or extract its weights, whatever strategy wrote it

Inspect:
  plan       estimate parameters, tokens and memory of a configuration without loading weights
  attention  plot what a compressor attends to in a recording, as PNG
  doctor     versions and devices; with --config, try a configuration on ten recordings before training
  plugins    list the encoders, compressors, LLMs, tasks and data modules that a config can name

Configs stack from left to right, and flags win:
  fastslm fit --config configs/hta.yaml --config configs/encoder/whisper_large_v3.yaml \\
      --config configs/llm/qwen3_4b.yaml --data.train_shards 'shards/train-*.tar' --trainer.max_steps 2000
A config is a path or the name of a shipped file (configs/hta.yaml works from any folder).
'fastslm COMMAND --help' lists every option; 'fastslm fit --print_config' shows the complete configuration.
"""


#: Where each command lives, as ``module:function``; the module is imported when its command is run.
#: It raises ``FastSLMError`` for a mistake of the user, which is printed here.
_COMMANDS: dict[str, str] = {
    "fit": "fastslm.training.command_line:main",
    "validate": "fastslm.training.command_line:main",
    "test": "fastslm.training.command_line:main",
    "predict": "fastslm.training.command_line:main",
    "ablate": "fastslm.commands.ablate:main",
    "evaluate": "fastslm.datamodules.evaluation.command:main",
    "attention": "fastslm.commands.attention:main",
    "import-release": "fastslm.commands.import_release:main",
    "transcribe": "fastslm.commands.transcribe:main",
    "ask": "fastslm.commands.ask:main",
    "serve": "fastslm.commands.serve:main",
    "export": "fastslm.commands.export:main",
    "push": "fastslm.export.push:main",
    "shards": "fastslm.datamodules.shards.command:main",
    "checkpoint": "fastslm.commands.checkpoint:main",
    "plan": "fastslm.commands.plan:main",
    "doctor": "fastslm.commands.doctor:main",
    "plugins": "fastslm.plugins:main",
}

_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may be no UTF-8: it is printed as it is
            stream.reconfigure(errors="surrogateescape")
    try:
        with ending_in_order(), trusted_process(), _without_secrets():
            status = _run(arguments)
            if sys.stdout is not None:
                sys.stdout.flush()
    except Terminated as ended:
        print(f"fastslm: {ended.text}.", file=sys.stderr)
        return EXIT_STATUS
    except KeyboardInterrupt:
        print("fastslm: interrupted.", file=sys.stderr)
        return 128 + signal.SIGINT  # as a shell reports it
    except BrokenPipeError:  # the reader has seen enough: fastslm doctor | head
        give_up_output()
        return 141  # as a shell reports a program that SIGPIPE ended
    except OutputError as error:
        give_up_output()
        print(f"fastslm: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # of a path that somebody gave, or of a disk, wherever it is met
        if str(error.strerror).startswith("No usable temporary directory"):  # of tempfile, which libraries import
            print(f"fastslm: error: {error.strerror}. Free space there, or set TMPDIR.", file=sys.stderr)
            return 2
        if error.filename is None and error.errno not in _OF_A_DISK:
            raise
        name = "" if error.filename is None else f"{redacted(os.fsdecode(error.filename))}: "
        way_out = WAYS_OUT.get(error.errno or 0)
        then = f" {way_out}, and give the same command again." if way_out else ""
        print(f"fastslm: error: {name}{error.strerror}.{then}", file=sys.stderr)
        return 2
    except ValueError as error:
        if str(error) != "embedded null byte":  # as Python says it of any path, without naming it
            raise
        print("fastslm: error: a path holds a zero byte, which the name of no file can.", file=sys.stderr)
        return 2
    return status


@contextlib.contextmanager
def _without_secrets() -> Iterator[None]:
    """Within it, what anybody prints is redacted, and so is the traceback of what nobody foresaw."""
    sys.excepthook = _print_redacted
    with contextlib.ExitStack() as stack:
        for redirect, stream in ((contextlib.redirect_stdout, sys.stdout), (contextlib.redirect_stderr, sys.stderr)):
            if stream is not None:  # it is closed: fastslm doctor >&-
                stack.enter_context(redirect(PrintedStream(stream)))
        before, threading.excepthook = threading.excepthook, _print_of_thread
        stack.callback(setattr, threading, "excepthook", before)
        yield


def _print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))


def _print_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Say in a line what a full disk has ended: TensorBoard's thread, whose error comes to the main one as well."""
    error = ended.exc_value
    if isinstance(error, OSError) and error.errno in _OF_A_DISK:
        print(f"fastslm: a thread that writes has ended: {error.strerror}.", file=sys.stderr)
    else:
        threading.__excepthook__(ended)


def _run(arguments: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        import fastslm

        print(f"fastslm {fastslm.__version__}")
        return 0
    if wrong := next(
        (argument for argument in arguments if argument.startswith("--") and argument.endswith("=--")), None
    ):
        print(f"fastslm: error: {wrong}: '--' is no value.", file=sys.stderr)  # argparse makes an empty list of it
        return 2
    if wrong := next((argument for argument in arguments if "\0" in argument), None):
        print(f"fastslm: error: {wrong!r}: no argument can hold a zero byte.", file=sys.stderr)
        return 2
    command = _COMMANDS.get(arguments[0])
    if command is None:
        print(
            f"fastslm: there is no command {arguments[0]!r}.{nearest(arguments[0], _COMMANDS)}"
            " 'fastslm --help' lists them.",
            file=sys.stderr,
        )
        return 2
    try:
        check_ranks()
        # Before torch, whose C code imports it and clears whatever is raised there, such as what ends this command.
        importlib.import_module("numpy")
        module, _, function = command.partition(":")
        return int(getattr(importlib.import_module(module), function)(arguments))
    except OutputError:
        raise
    except FastSLMError as error:  # a user's mistake, whatever the command
        print(f"fastslm: error: {error}", file=sys.stderr)
        return 2
