"""uvicorn's server, which tells the requests that are left when it ends, before it cuts them off."""

import asyncio
import socket
from typing import Any

import uvicorn

from .worker import Worker

#: From what is left being told to its connections being cut: for answers on their way, and clients that never end.
_LAST_SECONDS = 3


class Server(uvicorn.Server):
    """Finishes requests for a while when it is to end; those that are left then get the worker's refusal.

    Args:
        app: to be served.
        worker: of the app; it is stopped when the time is over.
        grace_seconds: the time that accepted requests have.
    """

    def __init__(self, app: Any, worker: Worker, grace_seconds: int) -> None:
        cut_after = grace_seconds + _LAST_SECONDS  # uvicorn cancels requests, which clients see as an error of theirs
        super().__init__(
            uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=cut_after
            )
        )
        self._worker, self._grace_seconds = worker, grace_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, finish requests, and tell those that are left."""
        loop = asyncio.get_running_loop()
        ending = loop.call_later(self._grace_seconds, loop.run_in_executor, None, self._worker.stop)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
