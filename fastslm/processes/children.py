"""Child processes that leave the signals that end a job to their parent, and end with it.

Clusters, ``timeout``, service managers and containers send such signals to a whole process group, children and all.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from fastslm.processes.signals import ENDING

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_LEFT_TO_PARENT = (signal.SIGINT, *ENDING)
_LOOK_SECONDS = 1.0


def num_usable_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Start child processes within: signals that end a job do not reach them, from their first moment on.

    They inherit what is blocked here. Each then calls ``follow_parent``, or would outlive its parent. This process is
    told of what came meanwhile at the end: by the system, or here, where another thread (tqdm's) has taken the signal.
    """
    with contextlib.ExitStack() as afterwards, contextlib.ExitStack() as stack:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        if threading.current_thread() is threading.main_thread():  # handlers run in no other
            for number in _LEFT_TO_PARENT:
                if callable(handler := signal.getsignal(number)):
                    stack.callback(signal.signal, number, handler)
                    signal.signal(number, lambda number, _: afterwards.callback(signal.raise_signal, number))
        yield


@contextlib.contextmanager
def without_script() -> Iterator[None]:
    """Within, start child processes that do not run this process's script: what they do and get comes from modules.

    One without ``if __name__ == "__main__"`` would begin anew in each of them, and wait for what its parent is doing.
    Not for several threads at once.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def follow_parent() -> None:
    """End this child process when its parent has ended, or sends it SIGTERM."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    starter = os.getppid()  # of a fork server's children, the server; it ends with the parent
    signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)

    def watch() -> None:
        while os.getppid() == starter and parent.is_alive():
            told = signal.sigtimedwait([signal.SIGTERM], _LOOK_SECONDS)
            if told is not None and told.si_pid == parent.pid:
                break
        os._exit(1)

    threading.Thread(target=watch, name="fastslm-follow-parent", daemon=True).start()


def shielded_context(method: str) -> BaseContext:
    """Return how to start processes, by ``spawn`` or ``forkserver``; a fork would copy the locks of torch's threads."""
    with shielded():
        resource_tracker.ensure_running()  # unblocks some signals when it starts, so that it must run before the others
    return multiprocessing.get_context(method)


class ProcessPool(ProcessPoolExecutor):
    """Processes that leave signals to this one and end with it.

    Args:
        max_workers: most processes.
        context: of ``shielded_context``.
        begin: called first in each, with ``arguments``.
    """

    def __init__(
        self, max_workers: int, context: BaseContext, begin: Callable[..., None] | None = None, *arguments: Any
    ) -> None:
        super().__init__(max_workers, mp_context=context, initializer=_begin, initargs=(begin, arguments))
        # All are started before any works: where one is killed while another starts, that runs into closed locks.
        self._safe_to_dynamically_spawn_children = False

    def submit(
        self, fn: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        """Hand in work; this is where processes are started."""
        with shielded():
            return super().submit(fn, *args, **kwargs)


def _begin(begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    follow_parent()
    if begin is not None:
        begin(*arguments)
