"""Runs the command in processes that are forked from one in which everything is imported already."""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass

_PRELOADED = (
    "torch", "transformers", "lightning.pytorch.cli", "deepspeed", "peft", "fastslm", "fastslm.cli",
    "fastslm.training.command_line", "fastslm.inference.load", "fastslm.commands.transcribe", "fastslm.sanity.command",
    "fastslm.export.push", "fastslm.ablation.report", "fastslm.datamodules.shards.command", "fastslm.plan.sketch",
)  # fmt: skip
_MEMORY_BYTES = 6 << 30
_FILE_BYTES = 1 << 29


@dataclass
class Ended:
    """How a command ended; ``status`` is None where it had to be killed."""

    status: int | None
    out: str
    err: str
    seconds: float

    @property
    def told(self):
        return self.out + self.err


def _run(arguments, folder, path):
    os.setsid()  # what it starts is killed with it
    os.chdir(folder)
    for number, name in ((0, os.devnull), (1, f"{path}.out"), (2, f"{path}.err")):
        os.dup2(os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    for stream in ("stdin", "stdout", "stderr"):
        number = ("stdin", "stdout", "stderr").index(stream)
        setattr(sys, stream, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))  # what is absurd is not written
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, used + _MEMORY_BYTES))  # nor held
    os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", COLUMNS="100000")
    from fastslm.cli import main

    sys.exit(main(arguments))


class Forks:
    """A server of forks.

    Args:
        folder: where what commands print goes.
    """

    def __init__(self, folder):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(_PRELOADED))
        self.path = str(folder / "printed")

    def run(self, arguments, folder, seconds=60):
        """Run a command in a folder; it is killed after so many seconds."""
        process = self.context.Process(target=_run, args=(arguments, str(folder), self.path))
        began = time.monotonic()
        process.start()
        process.join(seconds)
        status = process.exitcode
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        spent = time.monotonic() - began
        texts = [open(f"{self.path}.{name}", errors="surrogateescape").read() for name in ("out", "err")]  # noqa: SIM115
        return Ended(status, *texts, spent)
