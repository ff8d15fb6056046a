"""What every request passes first: key, size, a stalled upload, and how many are under way."""

import asyncio
import secrets
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics
from .problems import Problem
from .worker import Worker

#: Without a key: what tells no secret and costs nothing.
_OPEN = ("/", "/health")
#: Of what is read into memory; recordings of any size go through a form, to disk.
MOST_BYTES_IN_MEMORY = 64 << 20
_MOST_UPLOADS = 256
_IDLE_SECONDS = 30.0
_LEAST_BYTES_PER_SECOND = 4096  # of an upload as a whole: 32 kbit/s, half of what ISDN had


class Gate:
    """ASGI middleware. What it refuses is refused before the body is read.

    Args:
        app: what follows.
        worker: whose queue may be full.
        metrics: told of each request.
        api_key: what clients must send; None lets anybody in.
        most_upload_bytes: of a request whose route puts recordings on disk.
        upload_paths: these routes; what is sent to others is read into memory, and smaller.
        idle_seconds: an upload that sends nothing for so long is ended, and one that is so far behind the least rate.
    """

    def __init__(
        self,
        app: ASGIApp,
        worker: Worker,
        metrics: Metrics,
        api_key: str | None,
        most_upload_bytes: int,
        upload_paths: frozenset[str],
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        self.app, self.worker, self.metrics = app, worker, metrics
        self.api_key, self.most_upload_bytes, self.idle_seconds = api_key, most_upload_bytes, idle_seconds
        self.upload_paths = upload_paths
        self._num_uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, sent)
        finally:
            self.metrics.answered(scope, status, time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            self._check_key(scope, headers)
            most = self.most_upload_bytes
            if scope["path"] not in self.upload_paths:
                most = min(most, MOST_BYTES_IN_MEMORY)
            length = headers.get(b"content-length", b"")
            if length.isdigit() and int(length) > most:
                raise _too_large(most)
            if scope["method"] == "POST" and self.worker.is_full:
                raise busy(self.worker)
            if scope["method"] == "POST" and self._num_uploads >= _MOST_UPLOADS:
                raise _wait(f"{self._num_uploads} uploads are under way", "too_many_uploads", self.worker)
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        uploading = scope["method"] == "POST"
        self._num_uploads += uploading

        def whole() -> None:
            nonlocal uploading
            self._num_uploads -= uploading
            uploading = False

        try:
            await self.app(scope, self._bounded(receive, most, whole), send)
        finally:
            whole()

    def _check_key(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if self.api_key is None or scope["path"] in _OPEN:
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer" or not secrets.compare_digest(given.strip(), self.api_key.encode()):
            said = "is not the one of this server" if given else "is missing"
            raise Problem(
                401, f"The API key {said}. Send it as the header 'Authorization: Bearer KEY'.", None, "invalid_api_key"
            )

    def _bounded(self, receive: Receive, most: int, whole: Callable[[], None]) -> Receive:
        num_bytes, waited, more = 0, 0.0, True

        async def bounded() -> Message:
            nonlocal num_bytes, waited, more
            ahead = num_bytes / _LEAST_BYTES_PER_SECOND - waited
            began = time.monotonic()
            try:
                async with asyncio.timeout(self.idle_seconds + min(ahead, 0.0) if more else None):
                    message = await receive()
            except TimeoutError:
                slow = f"less than {size(_LEAST_BYTES_PER_SECOND)} a second"
                said = f"The upload sent nothing for {self.idle_seconds:g} s, or {slow}, and was ended."
                raise Problem(408, said, None, "upload_stalled") from None
            waited += time.monotonic() - began
            num_bytes += len(message.get("body", b""))
            more = more and message["type"] == "http.request" and message.get("more_body", False)
            if num_bytes > most:
                raise _too_large(most)
            if not more:
                whole()
            return message

        return bounded


def _too_large(most: int) -> Problem:
    return Problem(413, f"The request is larger than the {size(most)} that this server takes.", "file", "too_large")


def busy(worker: Worker) -> Problem:
    """Return what is said to a client that has to wait."""
    return _wait(f"{worker.num_waiting} requests wait", "queue_full", worker)


def _wait(why: str, code: str, worker: Worker) -> Problem:
    seconds = worker.retry_seconds
    return Problem(429, f"{why} already. Come again in {seconds} s.", None, code, seconds)


def size(num_bytes: int) -> str:
    """Return bytes for people."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes} bytes"
