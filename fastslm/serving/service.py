"""From a request to the worker and back: checks that routes share, waiting, and text that streams."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse

from fastslm.errors import FastSLMError, nearest
from fastslm.inference.arguments import check_limits
from fastslm.inference.engine import Decoding
from fastslm.inference.results import Answer, Segment
from fastslm.inference.text import gap
from fastslm.path.request import Request as Question

from .gate import busy
from .metrics import Metrics
from .model_process import Asked, NobodyWaits
from .problems import Problem, died, ending, failed
from .uploads import Upload
from .worker import Ended, Job, ModelDied, QueueFull, Worker

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Settings:
    """What a server is told.

    Attributes:
        names: by which clients may ask for the model; the first is listed as its own.
        api_key: what they must send; None lets anybody in.
        most_upload_bytes: of a request.
        section_minutes: transcripts are made section by section.
        allow_urls: recordings may be fetched from URLs, public ones only.
        letters: transcripts are searched among the letters that speech tokens spell.
    """

    names: tuple[str, ...]
    api_key: str | None = None
    most_upload_bytes: int = 1 << 30
    section_minutes: float | None = None
    allow_urls: bool = False
    letters: bool = False


@dataclass
class Service:
    """What the routes share.

    Attributes:
        worker: the queue before the model.
        metrics: told of answers.
        settings: of the server.
        created: when the server began, in seconds since 1970.
    """

    worker: Worker
    metrics: Metrics
    settings: Settings
    created: int

    def check_model(self, name: str | None) -> None:
        """Refuse a model that is not here.

        Raises:
            Problem: it is another one.
        """
        names = self.settings.names
        if name is not None and name not in names:
            raise Problem(
                404,
                f"model: there is no {name!r} here; this server has {' or '.join(map(repr, names))}."
                f"{nearest(name, names)}",
                "model",
                "model_not_found",
            )

    def check_asked(self, asked: Asked) -> Asked:
        """Return what is asked, with the server's own settings, if it makes sense.

        Raises:
            Problem: it does not.
        """
        try:
            Decoding(1, asked.temperature, asked.top_p, asked.seed)
            check_limits(asked.max_new_tokens)
            brought = self.worker.tasks.get(asked.task)
            task = Question(asked.task, asked.prompt, asked.language, brought).definition
        except FastSLMError as error:
            raise Problem(400, str(error)) from error
        if asked.segments and not task.timed:
            raise Problem(400, f"response_format: task {asked.task} answers about the whole audio, not by time.")
        return replace(
            asked,
            section_minutes=self.settings.section_minutes if task.timed else None,
            letters=self.settings.letters and task.transcript,
        )

    def begin(self, upload: Upload, asked: Asked, live: "Live | None" = None) -> Job:
        """Hand a request to the worker, which closes the recording.

        Raises:
            Problem: too many wait, or the server ends.
        """
        job = Job(upload, asked)
        if live is not None:
            live.follow(job)
        try:
            self.worker.submit(job)
        except (QueueFull, Ended) as error:
            upload.close()
            raise (busy(self.worker) if isinstance(error, QueueFull) else ending()) from None
        return job

    async def answer(self, request: Request, job: Job) -> Answer:
        """Wait for an answer; a client that goes ends the work.

        Raises:
            Problem: there is none; it says why.
            ClientDisconnect: nobody waits any more.
        """
        try:
            answer = await unless_gone(request, _of(job))
        except ClientDisconnect:
            raise
        except Exception as error:
            raise _problem(error) from error
        finally:
            self.worker.give_up(job)
        self.metrics.gave(answer)
        return answer


@dataclass
class Live:
    """What an answer adds while it is generated: chunks of text or segments, from the worker's thread to the loop.

    Chunks begin with the first letter, so that together they are the answer's text.

    Attributes:
        timed: segments come as they are; without they are chunks too, as an answer's sections are.
        text: what came, as far as it was taken.
    """

    timed: bool = False
    text: str = ""
    _began: bool = False
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _queue: "asyncio.Queue[str | Segment | None]" = field(default_factory=asyncio.Queue)

    def follow(self, job: Job) -> None:
        """Let a job put here what it adds."""
        job.on_added = self._put
        job.answer.add_done_callback(lambda _: self._put(None))

    def _put(self, item: str | Segment | None) -> None:
        if isinstance(item, str) and not self._began:
            item = item.lstrip()
            if not item:
                return
        self._began = True
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waits
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def next(self) -> str | Segment | None:
        """Return what comes next; None at the end."""
        item = await self._queue.get()
        if isinstance(item, Segment) and not self.timed:
            item = gap(self.text, item.text) + item.text
        if isinstance(item, str):
            self.text += item
        return item


async def unless_gone(request: Request, waited: "asyncio.Future[_Result]") -> _Result:
    """Return what is waited for, unless the client goes before.

    Raises:
        ClientDisconnect: it has gone.
    """
    gone = asyncio.ensure_future(_gone(request))
    try:
        both: set[asyncio.Future[Any]] = {waited, gone}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not waited.done():
            raise ClientDisconnect
        return waited.result()
    finally:
        gone.cancel()
        waited.cancel()


def _of(job: Job) -> "asyncio.Future[Answer]":
    return asyncio.wrap_future(job.answer)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def streamed(
    service: Service,
    request: Request,
    job: Job,
    live: Live,
    added: Callable[[str | Segment], Any],
    ended: Callable[[Answer], list[Any]],
    last: str = "",
) -> StreamingResponse:
    """Return an answer as server-sent events; one that fails before any text is an error like others.

    Args:
        service: the server.
        request: whose client may go.
        job: what is answered.
        live: what it adds.
        added: makes an event of what was added.
        ended: makes the last events.
        last: a line at the end.

    Raises:
        Problem: the recording or the request cannot be used.
        ClientDisconnect: nobody waits any more.
    """
    try:
        first = await unless_gone(request, asyncio.ensure_future(live.next()))
    except BaseException:
        service.worker.give_up(job)
        raise
    if first is None:
        answer = await service.answer(request, job)

    async def events() -> AsyncIterator[str]:
        try:
            item = first
            while item is not None:
                yield _event(added(item))
                item = await live.next()
            result = answer if first is None else await _of(job)
            if first is not None:
                service.metrics.gave(result)
            for event in ended(result):
                yield _event(event)
            if last:
                yield f"data: {last}\n\n"
        except Exception as error:
            yield _event(_problem(error).body())
        finally:
            service.worker.give_up(job)

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


def _problem(error: Exception) -> Problem:
    """Return what a client is told of a job without an answer."""
    if isinstance(error, FastSLMError):
        return Problem(400, str(error), None, "invalid_audio")
    if isinstance(error, NobodyWaits):
        return ending()
    return died() if isinstance(error, ModelDied) else failed()


def warnings_of(answer: Answer) -> dict[str, Any]:
    """Return what speaks against an answer as a field beside it; no field where all is well."""
    found = [*answer.remarks, *(f"the text {warning}" for warning in answer.warnings)]
    return {"warnings": found} if found else {}


def _event(content: Any) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
