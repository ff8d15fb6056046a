"""``fastslm serve``: a trained model behind the API that OpenAI's clients speak, and a page."""

import argparse
import contextlib
import functools
import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastslm.commands.parser import command_parser
from fastslm.commands.streams import PrintedStream
from fastslm.commands.transcribe import add_letters_option
from fastslm.errors import ConfigError, MissingExtraError
from fastslm.processes.signals import Terminated

if TYPE_CHECKING:
    from fastslm.inference.model import Model

#: The key in the environment, where no list of processes shows it.
KEY_VARIABLE = "FASTSLM_API_KEY"
_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

_EPILOG = """\
examples:
  fastslm serve runs/hta                              the page and the API at http://127.0.0.1:8000
  FASTSLM_API_KEY=... fastslm serve runs/hta --host 0.0.0.0
  curl http://127.0.0.1:8000/v1/audio/transcriptions -F file=@talk.mp3 -F model=hta
  OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="-").audio.transcriptions.create(model="hta", file=...)

On SIGTERM and Ctrl+C, accepted requests are finished within --grace seconds.
exit status: 0 shut down; 1 the model's process kept crashing; 2 could not start."""


def main(arguments: Sequence[str]) -> int:
    """Serve until told to end; return the exit status."""
    return _run(_parser().parse_args(list(arguments[1:])))


def _parser() -> argparse.ArgumentParser:
    description = "Serve a trained model with OpenAI's audio and chat API, and a web page at /."
    made = command_parser("serve", description, _EPILOG, allow_abbrev=False)
    made.add_argument(
        "model", metavar="MODEL", nargs="?",
        help="run folder, checkpoint, exported folder, or OWNER/NAME of the hub (default: the run in runs/hta)",
    )  # fmt: skip
    made.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: the first GPU if there is one)")
    made.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1, this machine only")
    made.add_argument("--port", type=int, default=8000, metavar="N", help="default: 8000; 0: any free port")
    made.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"key that clients must send; better set {KEY_VARIABLE}, which process lists do not show",
    )
    made.add_argument(
        "--name", action="append", metavar="NAME",
        help="model name that clients use; may be repeated (default: the name of its folder)",
    )  # fmt: skip
    made.add_argument("--max-upload", type=_bytes, default=1 << 30, metavar="SIZE", help="such as 200M (default: 1G)")
    made.add_argument("--queue", type=int, default=64, metavar="N", help="requests that may wait (default: 64)")
    made.add_argument("--batch-size", type=int, default=8, metavar="N", help="most requests in a batch (default: 8)")
    made.add_argument(
        "--cache",
        type=_bytes,
        default=256 << 20,
        metavar="SIZE",
        help="memory for the cache of encoded recordings (default: 256M)",
    )
    made.add_argument("--section-minutes", type=float, metavar="M", help="as in fastslm transcribe, for hours of audio")
    add_letters_option(made)
    made.add_argument("--allow-urls", action="store_true", help="fetch recordings from public http(s) addresses")
    made.add_argument(
        "--grace", type=int, default=30, metavar="SECONDS", help="time to finish requests on shutdown (default: 30)"
    )
    return made


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 200M or 1.5G")
    return round(float(found[1]) * _BYTES[found[2].upper()])


def _run(options: argparse.Namespace) -> int:
    try:
        from fastslm.serving.app import build_app
        from fastslm.serving.server import Server
        from fastslm.serving.service import Settings
        from fastslm.serving.worker import Ended, Worker
    except ImportError as error:
        raise MissingExtraError(str(error.name), extra="serve", purpose="fastslm serve") from error
    from fastslm.inference.arguments import check_limits, whole_number
    from fastslm.inference.load import find_model

    for name, least in (("port", 0), ("queue", 1), ("batch_size", 1), ("grace", 0)):
        whole_number(f"--{name.replace('_', '-')}", getattr(options, name), least, 65_535)
    check_limits(None, options.section_minutes)
    api_key = options.api_key if options.api_key is not None else os.environ.get(KEY_VARIABLE)
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise ConfigError(
            f"--api-key or {KEY_VARIABLE}: a key is printable ASCII without spaces around it, at least one."
        )
    found = find_model(options.model)
    names = tuple(options.name or [_name_of(options.model)])
    settings = Settings(
        names, api_key, options.max_upload, options.section_minutes, options.allow_urls, options.letters
    )
    load = functools.partial(_load, found, options.device, options.section_minutes, options.letters)
    with contextlib.ExitStack() as open_now:
        listener = open_now.enter_context(_listening(options.host, options.port))
        worker = Worker(load, options.queue, options.batch_size, options.cache)
        open_now.callback(worker.stop)
        try:
            worker.start()
        except Ended:  # the log says why
            return 1
        server = Server(build_app(worker, settings), worker, options.grace)
        listener.listen(server.config.backlog)  # who comes from now on waits in it, and is not refused
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"Serving {names[0]} at {address}/v1, with a page at {address}/ (Ctrl+C ends it).", file=sys.stderr)
        if api_key is None and not host.startswith("127.") and host != "::1":
            print(f"Anybody who reaches {host} may use it: set {KEY_VARIABLE} to ask for a key.", file=sys.stderr)
        worker.on_failure = lambda: setattr(server, "should_exit", True)
        if worker.failed:  # meanwhile
            server.should_exit = True
        try:
            server.run(sockets=[listener])
        except (KeyboardInterrupt, Terminated):  # raised again when the server has ended in order
            print("Ended.", file=sys.stderr)
        return int(worker.failed)


def _load(model: Path, device: str | None, section_minutes: float | None, letters: bool) -> "Model":
    """Return the model, in its own process, whose standard output and error are as those of the command.

    Raises:
        ConfigError: it takes no sections, or spells no letters.
    """
    from fastslm.inference.engine import Decoding
    from fastslm.inference.load import load
    from fastslm.path.request import Request

    if sys.stderr is not None:
        sys.stdout = sys.stderr = PrintedStream(sys.stderr)
    loaded = load(model, device=device)
    loaded.spells(Request(), Decoding(), letters, section_minutes=section_minutes)
    return loaded


def _name_of(model: str | None) -> str:
    """Return the name of a folder, however it is written (``.``, ``runs/hta/``), or that of a model on the hub."""
    return "hta" if model is None else os.path.basename(os.path.abspath(os.path.expanduser(model)))


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, so that an address in use is told before the model is loaded.

    Raises:
        ConfigError: it cannot be.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(f"--host {host} --port {port}: cannot be listened at: {error}.") from error
    return made
