"""The one thread that owns the model: requests wait in a bounded queue, and like ones are answered side by side."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field

import torch

from fastslm.errors import DataError, FastSLMError
from fastslm.inference.audio import AudioSource
from fastslm.inference.batch import side_by_side
from fastslm.inference.listening import EncodedAudio
from fastslm.inference.model import Model
from fastslm.inference.results import Answer, Segment

from .cache import EncodedCache

_LOG = logging.getLogger(__name__)


class QueueFull(Exception):
    """As many requests wait as may."""


class NobodyWaits(Exception):
    """Work was given up because nobody waits for its result."""


class Ended(Exception):
    """The worker takes no jobs any more."""


@dataclass(frozen=True)
class Asked:
    """What is asked of a recording, as ``Model.transcribe`` takes it; jobs that ask the same can be answered together.

    Attributes:
        task: see ``Model.transcribe``, as the others.
        prompt: words in place of the task's own; the question of ``sqqa``.
        language: what ``ast`` translates into.
        temperature: of the draws.
        top_p: of the draws.
        seed: of the draws.
        max_new_tokens: most tokens of the answer.
        section_minutes: write section by section.
        segments: give text by time.
    """

    task: str = "asr"
    prompt: str | None = None
    language: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int | None = None
    section_minutes: float | None = None
    segments: bool = False


@dataclass(eq=False)
class Job:
    """One request for the model.

    Attributes:
        source: the recording; open until the job is done.
        content: what tells its content from others.
        asked: what is asked.
        close: frees the recording.
        on_text: gets the text in chunks; None where nobody watches it come.
        on_segment: gets finished segments.
        answer: the answer, or why there is none.
        gone: set when nobody waits any more.
    """

    source: AudioSource
    content: str
    asked: Asked
    close: Callable[[], None] = lambda: None
    on_text: Callable[[str], None] | None = None
    on_segment: Callable[[Segment], None] | None = None
    answer: "Future[Answer]" = field(default_factory=Future)
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def alone(self) -> bool:
        """Whether it cannot be answered side by side with others."""
        by_section = self.asked.segments or self.asked.section_minutes is not None
        return by_section or self.on_text is not None or self.on_segment is not None


class Worker:
    """Answers jobs in a thread of its own.

    Args:
        model: the model; only this thread uses it.
        most_waiting: jobs that may wait.
        batch_size: most jobs that are answered side by side.
        cache_bytes: of speech tokens that are kept for further questions about the same recordings.

    Attributes:
        failed: whether its thread ended by a failure; nothing is answered from then on.
        on_failure: called then, in that thread.
    """

    def __init__(self, model: Model, most_waiting: int = 64, batch_size: int = 8, cache_bytes: int = 256 << 20) -> None:
        self.model, self.most_waiting, self.batch_size = model, most_waiting, batch_size
        self.cache = EncodedCache(cache_bytes)
        self.num_encoded = self.num_reused = 0
        self.seconds_per_job = 1.0  # a running mean
        self._waiting: deque[Job] = deque()
        self._running: Sequence[Job] = ()
        self._changed = threading.Condition(threading.RLock())
        self._stopped = False
        self.failed = False
        self.on_failure: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="fastslm-serve", daemon=True)

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Give up what waits and what runs; say whether the thread ended in time."""
        with self._changed:
            self._stopped = True
            for job in (*self._waiting, *self._running):
                self.give_up(job)
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether it takes jobs."""
        return self._thread.is_alive()

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
        return max(1, round(self.seconds_per_job * (self.num_waiting + self.num_running)))

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            QueueFull: too many wait.
            Ended: nothing is answered any more.
        """
        with self._changed:
            if self._stopped:
                raise Ended
            if self.is_full:
                raise QueueFull
            self._waiting.append(job)
            self._changed.notify()

    def give_up(self, job: Job) -> None:
        """Say that nobody waits for a job any more: it is not begun, or ends soon. One that is done stays so."""
        with self._changed:
            job.gone.set()
            if job in self._waiting:
                self._waiting.remove(job)
                _put(job, NobodyWaits())
                job.close()

    def _run(self) -> None:
        try:
            while (jobs := self._next()) is not None:
                self._do(jobs)
        except BaseException as error:  # nobody else would see it, and clients would wait for ever
            _LOG.critical("The model cannot go on, and the server ends.", exc_info=error)
            with self._changed:
                self._stopped = self.failed = True
                for job in tuple(self._waiting):
                    self.give_up(job)
            self.on_failure()

    def _do(self, jobs: Sequence[Job]) -> None:
        began = time.perf_counter()
        self._running = jobs
        try:
            self._answer(jobs)
        except BaseException as error:  # whatever it is, also sys.exit() of a part, the next request is answered
            for job in jobs:
                _put(job, _named(job, error))
            if isinstance(error, torch.AcceleratorError):
                raise  # the device answers nothing more to this process
        finally:
            self._running = ()
            for job in jobs:
                job.close()
        spent = (time.perf_counter() - began) / len(jobs)
        self.seconds_per_job += (spent - self.seconds_per_job) / 8

    def _next(self) -> list[Job] | None:
        """Return the jobs to do next, the oldest and those like it; None when it is time to stop."""
        with self._changed:
            while not self._waiting and not self._stopped:
                self._changed.wait()
            if self._stopped:
                return None
            first = self._waiting[0]
            chosen = [first]
            if not first.alone:
                like = [job for job in self._waiting if job.asked == first.asked and not job.alone]
                chosen = next(side_by_side([(job, job.source.seconds) for job in like], self.batch_size))
            for job in chosen:
                self._waiting.remove(job)
            for job in chosen:
                job.answer.set_running_or_notify_cancel()
        return chosen

    def _answer(self, jobs: Sequence[Job]) -> None:
        def go_on(_what: str, _amount: float) -> None:
            if all(job.gone.is_set() for job in jobs):
                raise NobodyWaits

        ready = []
        for job, audio in zip(jobs, self._encoded(jobs, go_on), strict=True):
            if isinstance(audio, FastSLMError):
                _put(job, audio)
            else:
                ready.append((job, audio))
        if not ready:
            return
        settings = asdict(ready[0][0].asked)
        if len(ready) == 1:
            ((job, audio),) = ready
            on_text, on_segment = job.on_text, job.on_segment
            _put(
                job,
                self.model.transcribe(audio, on_progress=go_on, on_text=on_text, on_segment=on_segment, **settings),
            )
            return
        together = {name: value for name, value in settings.items() if name not in ("section_minutes", "segments")}
        answers = self.model.transcribe_batch([audio for _, audio in ready], on_progress=go_on, **together)
        for (job, _), answer in zip(ready, answers, strict=True):
            _put(job, answer)

    def _encoded(self, jobs: Sequence[Job], go_on: Callable[[str, float], None]) -> list[EncodedAudio | FastSLMError]:
        """Return the recordings of jobs with their speech tokens; those that were encoded before are not again."""
        known = {job.content: kept for job in jobs if (kept := self.cache.get(job.content)) is not None}
        missing = {job.content: job.source for job in jobs if job.content not in known}
        made: dict[str, EncodedAudio | FastSLMError] = {**known}
        for content, audio in zip(missing, self.model.encode_all(list(missing.values()), go_on), strict=True):
            made[content] = audio
            if isinstance(audio, EncodedAudio):
                self.cache.put(content, audio)
        self.num_encoded, self.num_reused = self.num_encoded + len(missing), self.num_reused + len(jobs) - len(missing)
        return [
            audio.named(job.source.name) if isinstance(audio := made[job.content], EncodedAudio) else audio
            for job in jobs
        ]


def _put(job: Job, found: Answer | BaseException) -> None:
    if job.answer.done():
        return
    if isinstance(found, Answer):
        job.answer.set_result(found)
    else:
        job.answer.set_exception(found)


def _named(job: Job, error: BaseException) -> Exception:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return DataError(f"{job.source.name}: the device's memory is too small for it.")
    if not isinstance(error, (FastSLMError, NobodyWaits)):
        _LOG.error("A request failed.", exc_info=error)
    return error if isinstance(error, Exception) else RuntimeError(repr(error))  # an exit would end the loop
