"""The queue before the model: like requests are answered side by side, by a process that is started again if it dies.

The process and what is said between are in ``model_process``.
"""

import logging
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.process import BaseProcess

from fastslm.contracts import Task
from fastslm.errors import FastSLMError
from fastslm.inference.batch import side_by_side
from fastslm.inference.model import Model
from fastslm.inference.results import Answer, Segment

from .model_process import Asked, NobodyWaits, Sent, Told, start_process
from .uploads import Upload

_LOG = logging.getLogger(__name__)
#: A process that dies so often without an answer between would die for ever.
MOST_DEATHS = 3
_EXIT_SECONDS, _PAUSE_SECONDS = 10.0, 2.0


class QueueFull(Exception):
    """As many requests wait as may."""


class Ended(Exception):
    """The worker takes no jobs any more."""


class ModelDied(Exception):
    """The model's process ended while it answered."""


class ModelFailed(Exception):
    """A request met a fault, which the log has."""


@dataclass(eq=False)
class Job:
    """One request for the model.

    Attributes:
        upload: the recording; open until the job is done.
        asked: what is asked.
        on_added: gets text in chunks, or finished segments; None where nobody watches them come.
        answer: the answer, or why there is none.
        gone: nobody waits any more.
    """

    upload: Upload
    asked: Asked
    on_added: Callable[[str | Segment], None] | None = None
    answer: "Future[Answer]" = field(default_factory=Future)
    gone: bool = False

    def __post_init__(self) -> None:
        self.answer.set_running_or_notify_cancel()  # it is given up by the worker alone

    @property
    def alone(self) -> bool:
        """Whether it cannot be answered side by side with others."""
        return self.asked.segments or self.asked.section_minutes is not None or self.on_added is not None

    def end(self, found: Answer | Exception) -> None:
        """Free the recording, and say how it went where that is not known yet."""
        self.put(found)
        self.upload.close()

    def put(self, found: Answer | Exception) -> None:
        """Say how it went; what is said first counts."""
        if self.answer.done():
            return
        if isinstance(found, Answer):
            self.answer.set_result(found)
        else:
            self.answer.set_exception(found)


class Worker:
    """Answers jobs by a model in a process of its own.

    A process that dies is started again. Requests that it was answering are told; those that wait keep their place.

    Args:
        load: loads the model, in that process; can be pickled.
        most_waiting: jobs that may wait.
        batch_size: most jobs that are answered side by side.
        cache_bytes: of speech tokens that are kept for further questions about the same recordings.

    Attributes:
        tasks: what the model brings itself, by name; known when it has started.
        ready: whether the model is loaded.
        failed: whether it ended by a failure; nothing is answered from then on.
        on_failure: called then, in a thread of the worker's.
        num_restarts: of the process.
        num_encoded: recordings that were encoded.
        num_reused: recordings that had been encoded before.
        kept_bytes: of speech tokens that are kept.
    """

    def __init__(
        self, load: Callable[[], Model], most_waiting: int = 64, batch_size: int = 8, cache_bytes: int = 256 << 20
    ) -> None:
        self.most_waiting = most_waiting
        self._load, self._batch_size, self._cache_bytes = load, batch_size, cache_bytes
        self.tasks: Mapping[str, Task] = {}
        self.ready = self.failed = False
        self.on_failure: Callable[[], None] = lambda: None
        self.num_restarts = self.num_encoded = self.num_reused = self.kept_bytes = 0
        self._encoded_before = (0, 0)  # by processes that died
        self._seconds_per_job = 1.0  # a running mean
        self._num_deaths = 0  # since the last answer
        self._refusal: FastSLMError | None = None
        self._waiting: deque[Job] = deque()
        self._running: Sequence[Job] = ()
        self._running_since = 0.0
        self._begun = self._given_up = False  # of those that run
        self._lock = threading.RLock()
        self._bell, self._rope = Pipe(duplex=False)
        self._rung = self._stopped = False
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fastslm-serve", daemon=True)

    def start(self) -> None:
        """Load the model, and begin to take jobs.

        Raises:
            FastSLMError: it cannot be loaded.
            Ended: its process dies; the log says how.
        """
        self._thread.start()
        self._settled.wait()
        if self._refusal is not None:
            raise self._refusal
        if self.failed:
            raise Ended

    def stop(self) -> None:
        """Give up what waits and what runs, and end the process; again does nothing."""
        with self._lock:
            self._stopped = True
            if not self._rope.closed:
                self._ring()
        if self._thread.ident is not None:
            self._thread.join()
        with self._lock:
            self._bell.close()
            self._rope.close()

    @property
    def alive(self) -> bool:
        """Whether it takes jobs."""
        return not self._stopped

    @property
    def num_waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Jobs that are being answered."""
        return len(self._running)

    @property
    def is_full(self) -> bool:
        """Whether one more job would be refused."""
        return self.num_waiting >= self.most_waiting

    @property
    def retry_seconds(self) -> int:
        """When to come again, by how long jobs took."""
        return max(1, round(self._seconds_per_job * (self.num_waiting + self.num_running)))

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            QueueFull: too many wait.
            Ended: nothing is answered any more.
        """
        with self._lock:
            if self._stopped:
                raise Ended
            if self.is_full:
                raise QueueFull
            self._waiting.append(job)
            self._ring()

    def give_up(self, job: Job) -> None:
        """Say that nobody waits for a job any more: it is not begun, or ends soon. One that is done stays so."""
        with self._lock:
            job.gone = True
            if job in self._waiting:
                self._waiting.remove(job)
                job.end(NobodyWaits())
            elif job in self._running:
                self._ring()

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            self._rope.send_bytes(b".")

    # -- in the worker's thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopped and self._num_deaths < MOST_DEATHS:
                self._one_process()
        except FastSLMError as error:
            self._refusal = error
            if self._settled.is_set():
                _LOG.critical("The model cannot be loaded again, and the server ends: %s", error)
        except Exception as error:  # nobody else would see it, and clients would wait for ever
            _LOG.critical("The queue before the model failed, and the server ends.", exc_info=error)
        finally:
            with self._lock:
                self.failed, self._stopped, self.ready = not self._stopped, True, False
                for job in (*self._waiting, *self._running):
                    job.end(NobodyWaits())
                self._waiting.clear()
                self._running = ()
            self._settled.set()
            if self.failed:
                self.on_failure()

    def _one_process(self) -> None:
        """Start a process and let it answer until it dies, or all is to end.

        Raises:
            FastSLMError: it cannot load the model.
        """
        try:
            process, connection = start_process(self._load, self._cache_bytes)
        except OSError as error:  # of memory, processes or descriptors there are none left now
            self._num_deaths += 1
            _LOG.error("The model's process cannot be started: %s.", error.strerror)
            time.sleep(_PAUSE_SECONDS)
            return
        try:
            with connection, socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as carrier:
                self._converse(connection, carrier)
        except (EOFError, OSError):
            process.join(_EXIT_SECONDS)
            self._note_death(process)
        finally:
            process.kill()
            process.join()
            process.close()

    def _converse(self, connection: Connection, carrier: socket.socket) -> None:
        while not self._stopped:
            self._hand_out(connection, carrier)
            for ready in wait([connection, self._bell]):
                if ready is connection:
                    self._take(connection.recv())
                    continue
                with self._lock:
                    self._bell.recv_bytes()
                    self._rung = False

    def _hand_out(self, connection: Connection, carrier: socket.socket) -> None:
        """Send the jobs that are next, or that nobody waits for those that run."""
        with self._lock:
            if self._running and not self._given_up and all(job.gone for job in self._running):
                self._given_up = True
                connection.send(None)
            if self._running or not self._waiting or not self.ready:
                return
            self._running = jobs = self._next()
            self._running_since = time.perf_counter()
            self._begun = self._given_up = False
        connection.send([Sent(j.upload.source.name, j.upload.content, j.asked, j.on_added is not None) for j in jobs])
        for job in jobs:  # one by one: the kernel takes a limited number at once
            socket.send_fds(carrier, [b"."], [job.upload.fileno()])

    def _next(self) -> list[Job]:
        """Take the oldest job from the queue, and those like it."""
        first = self._waiting[0]
        chosen = [first]
        if not first.alone:
            like = [job for job in self._waiting if job.asked == first.asked and not job.alone]
            chosen = next(side_by_side([(job, job.upload.source.seconds) for job in like], self._batch_size))
        for job in chosen:
            self._waiting.remove(job)
        return chosen

    def _take(self, told: Told) -> None:
        match told:
            case Told("loaded", tasks):
                self.tasks, self.ready = tasks, True
                self._settled.set()
            case Told("refused", error):
                raise error
            case Told("begun"):
                self._begun = True
            case Told("added", item, place):
                if (on_added := self._running[place].on_added) is not None:
                    on_added(item)
            case Told("answer", found, place):
                self._num_deaths = 0
                self._running[place].put(found)
            case Told("fault", text):
                _LOG.error("A request failed.\n%s", text.rstrip())
                for job in self._running:
                    job.put(ModelFailed())
            case Told("done", (num_encoded, num_reused, kept_bytes)):
                spent = (time.perf_counter() - self._running_since) / len(self._running)
                self._seconds_per_job += (spent - self._seconds_per_job) / 8
                encoded, reused = self._encoded_before
                self.num_encoded, self.num_reused = encoded + num_encoded, reused + num_reused
                self.kept_bytes = kept_bytes
                with self._lock:
                    for job in self._running:
                        job.end(NobodyWaits())
                    self._running = ()

    def _note_death(self, process: BaseProcess) -> None:
        with self._lock:
            jobs, self._running, self.ready, self.kept_bytes = self._running, (), False, 0
            told = [job for job in jobs if self._begun or job.gone]
            for job in told:
                job.end(ModelDied())
            self._waiting.extendleft(reversed([job for job in jobs if job not in told]))
            num_waiting = len(self._waiting)
        self._encoded_before = self.num_encoded, self.num_reused
        self._num_deaths += 1
        how = _how(process.exitcode)
        if self._num_deaths == MOST_DEATHS:
            _LOG.critical(
                "The model's process %s, the %d. time without an answer between: the server ends.", how, MOST_DEATHS
            )
            return
        self.num_restarts += 1
        _LOG.error(
            "The model's process %s. Of the requests %d that it was answering were told so, and %d wait for the"
            " process that is started in its place.", how, len(told), num_waiting,
        )  # fmt: skip


def _how(code: int | None) -> str:
    if code is None:
        return "closed its connection and does not end"
    if code >= 0:
        return f"ended with exit status {code}"
    memory = ", as when memory runs out" if -code == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{memory}"
