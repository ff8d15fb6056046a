"""The process that has the model: it loads it, and answers what comes through a connection until that is closed.

The server sends lists of ``Sent``, each followed by the descriptors of its recordings, and None where nobody waits for
the last list any more. It is told what happens as ``Told``, first that the model is loaded.
"""

import contextlib
import faulthandler
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from fastslm.errors import DataError, FastSLMError
from fastslm.inference.audio import FileSource
from fastslm.inference.listening import EncodedAudio
from fastslm.inference.model import Model
from fastslm.inference.results import Answer
from fastslm.processes.children import follow_parent, shielded, shielded_context

from .cache import EncodedCache


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
        letters: search the letters that the speech tokens spell.
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
    letters: bool = False


class Sent(NamedTuple):
    """A request on its way to the model.

    Attributes:
        name: of the recording.
        content: what tells its content from others.
        asked: what is asked.
        watched: whether somebody watches the text come.
    """

    name: str
    content: str
    asked: Asked
    watched: bool


class Told(NamedTuple):
    """What the server is told.

    Attributes:
        what: ``loaded``, with the tasks that the model brings, or ``refused``, with why it cannot be; of a list of
            requests ``begun``, then ``added`` (text or a segment), ``answer`` (or the error in its place), ``fault``
            (the traceback of what ended all of them), and ``done``, with how many recordings were encoded and were
            not again, and the bytes of those that are kept.
        value: see ``what``.
        place: of the request in its list.
    """

    what: Literal["loaded", "refused", "begun", "added", "answer", "fault", "done"]
    value: Any = None
    place: int = 0


class NobodyWaits(Exception):
    """Work was given up because nobody waits for its result."""


def start_process(load: Callable[[], Model], cache_bytes: int) -> tuple[BaseProcess, Connection]:
    """Start it, and return it with the server's end of the connection.

    Args:
        load: loads the model, there; can be pickled.
        cache_bytes: of speech tokens that are kept for further questions about the same recordings.
    """
    context = shielded_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=_main, args=(its, load, cache_bytes), name="fastslm-model", daemon=True)  # type: ignore[attr-defined]
    try:
        with its, shielded():
            process.start()
    except BaseException:
        mine.close()
        raise
    return process, mine


def _main(connection: Connection, load: Callable[[], Model], cache_bytes: int) -> None:
    follow_parent()
    if sys.stderr is not None:
        faulthandler.enable()  # where a library crashes is otherwise told nowhere
    status = 1
    try:
        answer_through(connection, load, cache_bytes)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # what libraries do at an end may wait for a device that answers nothing more


def answer_through(connection: Connection, load: Callable[[], Model], cache_bytes: int) -> None:
    """Load a model and answer what comes, until the server closes the connection; see ``start_process``.

    Raises:
        torch.AcceleratorError: the device answers nothing more to this process.
    """
    with connection, contextlib.suppress(ConnectionError):
        try:
            model = load()
        except FastSLMError as error:
            connection.send(Told("refused", FastSLMError(str(error))))
            return
        connection.send(Told("loaded", model.tasks))
        answering = _Answering(model, connection, EncodedCache(cache_bytes))
        with contextlib.suppress(EOFError, OSError):  # it was closed
            while True:
                answering.take(connection.recv())


class _Answering:
    def __init__(self, model: Model, connection: Connection, cache: EncodedCache) -> None:
        self._model, self._connection, self._cache = model, connection, cache
        self._num_encoded = self._num_reused = 0

    def take(self, sent: Sequence[Sent] | None) -> None:
        """Answer a list of requests; None was meant for one that is done already."""
        if sent is None:
            return
        with contextlib.ExitStack() as opened:
            descriptors = []
            with socket.fromfd(self._connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as carrier:
                for _ in sent:
                    _, (descriptor,), *_ = socket.recv_fds(carrier, 1, 1)
                    opened.callback(os.close, descriptor)
                    descriptors.append(descriptor)
            self._tell("begun")
            self._try(sent, descriptors)
        self._tell("done", (self._num_encoded, self._num_reused, self._cache.num_bytes))

    def _tell(self, what: Any, value: Any = None, place: int = 0) -> None:
        self._connection.send(Told(what, value, place))

    def _try(self, sent: Sequence[Sent], descriptors: Sequence[int]) -> None:
        try:
            self._answer(sent, descriptors)
        except NobodyWaits:
            pass
        except (torch.OutOfMemoryError, MemoryError):
            for place, job in enumerate(sent):
                self._tell("answer", DataError(f"{job.name}: the device's memory is too small for it."), place)
        except FastSLMError as error:
            for place in range(len(sent)):
                self._tell("answer", FastSLMError(str(error)), place)
        except torch.AcceleratorError:
            raise  # the device answers nothing more to this process
        except BaseException:  # whatever it is, also sys.exit() of a part, the next request is answered
            self._tell("fault", traceback.format_exc())

    def _answer(self, sent: Sequence[Sent], descriptors: Sequence[int]) -> None:
        ready: list[tuple[int, EncodedAudio]] = []
        for place, audio in enumerate(self._encoded(sent, descriptors)):
            if isinstance(audio, EncodedAudio):
                ready.append((place, audio))
            else:
                self._tell("answer", FastSLMError(str(audio)), place)
        if not ready:
            return
        settings = asdict(sent[0].asked)
        if len(ready) == 1:
            ((place, audio),) = ready

            def added(item: Any) -> None:
                self._tell("added", item, place)

            on_added = added if sent[place].watched else None
            answer = self._model.transcribe(
                audio, on_progress=self._go_on, on_text=on_added, on_segment=on_added, **settings
            )
            self._tell("answer", answer, place)
            return
        together = {name: value for name, value in settings.items() if name not in ("section_minutes", "segments")}
        answers = self._model.transcribe_batch([audio for _, audio in ready], on_progress=self._go_on, **together)
        for (place, _), found in zip(ready, answers, strict=True):
            self._tell("answer", found if isinstance(found, Answer) else FastSLMError(str(found)), place)

    def _go_on(self, _what: str, _amount: float) -> None:
        if self._connection.poll():
            self._connection.recv()  # None: nothing else is said meanwhile
            raise NobodyWaits

    def _encoded(self, sent: Sequence[Sent], descriptors: Sequence[int]) -> list[EncodedAudio | FastSLMError]:
        """Return recordings with their speech tokens; those that were encoded before are not again."""
        made: dict[str, EncodedAudio | FastSLMError] = {}
        missing: dict[str, FileSource] = {}
        for job, descriptor in zip(sent, descriptors, strict=True):
            kept = self._cache.get(job.content)
            if kept is not None:
                made[job.content] = kept
            elif job.content not in missing:
                missing[job.content] = FileSource(Path(f"/dev/fd/{descriptor}"), job.name)
        for content, audio in zip(missing, self._model.encode_all(list(missing.values()), self._go_on), strict=True):
            made[content] = audio
            if isinstance(audio, EncodedAudio):
                self._cache.put(content, audio)
        self._num_encoded += len(missing)
        self._num_reused += len(sent) - len(missing)
        found: list[EncodedAudio | FastSLMError] = []
        for job in sent:
            audio = made[job.content]
            if isinstance(audio, EncodedAudio):
                found.append(audio.named(job.name))
            else:  # it begins with the name that another client may have given to the same content
                found.append(FastSLMError(f"{job.name}{str(audio).removeprefix(missing[job.content].name)}"))
        return found
