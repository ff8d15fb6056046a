"""Work spread over processes that end with their parent, stop together, and report progress while they work."""

import contextlib
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from fastslm.errors import DataError, FastSLMError
from fastslm.processes.children import ProcessPool, shielded_context

Item = TypeVar("Item")
Result = TypeVar("Result")
#: Called by the work with the amount done since the last call.
Report = Callable[[float], None]
_REFRESH_SECONDS = 0.3


class Stopped(Exception):
    """Another process has failed, or the user has had enough: leave nothing half done and return."""


class Progress:
    """A progress bar over an amount of work, such as seconds of audio.

    Args:
        description: what is being done.
        total: amount of all work.
        unit: what is counted; ``h`` shows seconds as hours of audio.
    """

    def __init__(self, description: str, total: float, unit: str) -> None:
        self._scale = 3600.0 if unit == "h" else 1.0
        counts = (
            "{n:.2f}/{total:.2f} h of audio"
            if unit == "h"
            else "{n:.1f}/{total:.1f} MB"
            if unit == "MB"
            else "{n:.0f}/{total:.0f} " + unit
        )
        shown = sys.stderr.isatty()
        self.bar = tqdm(
            total=total / self._scale,
            desc=description,
            bar_format="{l_bar}{bar}| " + counts + " [{elapsed}<{remaining}]",
            mininterval=_REFRESH_SECONDS if shown else 30.0,  # a log file needs no line a second
        )

    def add(self, amount: float) -> None:
        """Count an amount as done."""
        # Lengths are told, not measured, and sums of fractions may pass their total by the last digit.
        self.bar.n = min(self.bar.n + amount / self._scale, self.bar.total)
        self.bar.update(0)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()


def run_all(
    work: Callable[[Item, Report], Result], items: Sequence[Item], num_workers: int, progress: Progress
) -> Generator[tuple[int, Result], None, None]:
    """Yield the number of each item and what the work made of it, as they are completed.

    With one worker (or one item) the work is done here, otherwise in processes of its own. The first failure stops all
    of them, each after the chunk of work it is at.

    Args:
        work: a function of a module, or ``partial`` of one, called with an item and a reporter of progress; it may
            raise ``Stopped``, which the reporter does when it is time to stop.
        items: what is handed to it; sent to the processes by pickle.
        num_workers: most processes.
        progress: counts what the reporter is given.

    Raises:
        DataError: a process was killed, or the work raised it.
    """
    with contextlib.closing(progress):
        if min(num_workers, len(items)) <= 1:
            for number, item in enumerate(items):
                yield number, work(item, progress.add)
        else:
            yield from _spread(work, items, num_workers, progress)


def run_in_order(
    work: Callable[[Item, Report], Result], items: Sequence[Item], num_workers: int, progress: Progress
) -> list[Result]:
    """Return what the work made of each item, in their order; see ``run_all``."""
    with contextlib.closing(run_all(work, items, num_workers, progress)) as done:
        results = dict(done)
    return [results[number] for number in range(len(items))]


def _spread(
    work: Callable[[Item, Report], Result], items: Sequence[Item], num_workers: int, progress: Progress
) -> Generator[tuple[int, Result], None, None]:
    context = shielded_context("forkserver")
    context.set_forkserver_preload([getattr(work, "func", work).__module__])  # imports what it needs once for all
    done, stop = context.Value("d", 0.0), context.Event()
    workers = min(num_workers, len(items))
    with ProcessPool(workers, context, _begin, done, stop) as pool:
        counted = 0.0
        try:
            # A worker may die while later items are still handed in.
            pending: dict[Future[Result], int] = {pool.submit(_perform, work, item): i for i, item in enumerate(items)}
            while pending:
                finished, _ = wait(pending, _REFRESH_SECONDS, FIRST_COMPLETED)
                now = float(done.value)
                progress.add(now - counted)
                counted = now
                for future in finished:
                    number = pending.pop(future)
                    yield number, future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed, most likely because memory ran out. What was finished is kept: run the"
                " same command again, with fewer --workers."
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


_done: Any = None
_stop: Any = None


def _begin(done: Any, stop: Any) -> None:
    """Keep what a worker reports to."""
    global _done, _stop
    _done, _stop = done, stop


def _perform(work: Callable[[Item, Report], Result], item: Item) -> Result:
    try:
        return work(item, _report)
    except FastSLMError as error:  # its text is all that matters, and not all kinds survive a pickle
        raise DataError(str(error)) from error


def _report(amount: float) -> None:
    with _done.get_lock():
        _done.value += amount
    if _stop.is_set():
        raise Stopped
