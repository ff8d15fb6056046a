"""Signals that end a job: the command ends in order on them, with one exit status."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

#: What a shell reports for a process that ended on SIGTERM; the job is to be started again.
EXIT_STATUS = 128 + signal.SIGTERM
#: What announces the end of a job.
ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_AGAIN_SECONDS = 0.05


class Terminated(SystemExit):
    """The process was told to end.

    Args:
        text: for the person who reads the log.
        status: of the command.
    """

    def __init__(self, text: str, status: int = EXIT_STATUS) -> None:
        super().__init__(status)
        self.text, self.status = text, status


def _end(number: int, _frame: FrameType | None) -> None:
    raise Terminated(f"ended by {signal.Signals(number).name}")


def _again(lost: "sys.UnraisableHookArgs") -> None:
    if not issubclass(lost.exc_type, (KeyboardInterrupt, Terminated)):
        sys.__unraisablehook__(lost)
        return
    number = signal.SIGINT if issubclass(lost.exc_type, KeyboardInterrupt) else signal.SIGTERM
    threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, [threading.main_thread().ident, number]).start()


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Let a signal that ends the process remove its temporary files first, as an exception does.

    Handlers that somebody else has set are left alone. What a signal raises within a callback of Python's own, such as
    a weak reference's, ends nothing and is only reported; it is raised again a moment later.

    Raises:
        Terminated: such a signal came.
    """
    if threading.current_thread() is not threading.main_thread():  # another may not set handlers
        yield
        return
    ours = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _end)
    report, sys.unraisablehook = sys.unraisablehook, _again
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
